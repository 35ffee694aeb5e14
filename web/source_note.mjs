// A note on a panel about the source image: enlarged further than detail can be added at once, cropped, or stretched.

import { html } from "./dom.mjs";
import { resizing } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { GAP, measured } from "./measured.mjs";

const MOST = 2; // times the side in one stage, as CLEAR High-Res Upscale plans its stages
const UNNOTICED = 0.01; // of the image or of its shape: what rounding to whole pixels does

/** @typedef {[width: number, height: number]} Size */

/** @param {import("./types").Node} node */
export function sourceNote(node) {
    const element = html("p", { class: "clear-note clear-warning", role: "status", hidden: "" });
    const height = measured(node, element);
    return {
        element,
        height: () => (element.hidden ? 0 : height() + GAP),
        refresh() {
            const found = resizing(node);
            const text = found ? sentences(found).join(" ") : "";
            if (text !== element.textContent) element.textContent = text;
            element.hidden = !text;
        },
    };
}

/** @param {{ from: Size, to: Size, crop: boolean }} resized */
function sentences({ from, to, crop }) {
    const scales = [to[0] / from[0], to[1] / from[1]];
    const [times, least] = [Math.max(...scales), Math.min(...scales)];
    const size = from.join(" x ");
    const found = [];
    if (times > MOST * (1 + UNNOTICED)) {
        const values = { size, times: times.toFixed(1), most: MOST, wanted: to.map((side) => side / MOST).join(" x ") };
        const enlarged = t(
            "The source image, $size, is enlarged $times times at once; more than $most blurs it. Start from $wanted.",
            values,
        );
        found.push(enlarged);
    }
    const lost = 1 - least / times;
    if (lost > UNNOTICED && crop) {
        const percent = Math.round(100 * lost);
        found.push(t("$percent % of the source image is cropped: the result has another aspect ratio.", { percent }));
    } else if (lost > UNNOTICED) {
        found.push(t("The source image is stretched: the result has another aspect ratio."));
    }
    return found;
}
