// Panel of Compare Images: both images under a slider.

import { imageAddress } from "./api.mjs";
import { html } from "./dom.mjs";
import { t } from "./i18n.mjs";
import { imageSlider } from "./image_slider.mjs";
import { growToFit } from "./node_panel.mjs";
import { pairsOf } from "./run_images.mjs";

const EMPTY_HEIGHT = 34;
const HEIGHT = 330;

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function comparePanel(node) {
    const note = html("p", { class: "clear-note", role: "status" });
    const slider = imageSlider();
    const element = html("div", { class: "clear-panel" }, slider.element, note);
    let shown = "";

    function refresh() {
        const pairs = pairsOf(node);
        const labels = ["image_a", "image_b"].map((name) => inputLabel(node, name));
        const wanted = JSON.stringify([pairs, labels]);
        if (wanted === shown) return;
        shown = wanted;
        slider.show(
            pairs.map(({ a, b }) => ({ before: imageAddress(a), after: imageAddress(b) })),
            /** @type {[string, string]} */ (labels),
        );
        note.textContent = pairs[0] ? limits(pairs) : t("Run it to see both images here, under a slider.");
        note.hidden = !note.textContent;
        growToFit(node);
    }

    return { element, height: () => (slider.element.hidden ? EMPTY_HEIGHT : HEIGHT), refresh };
}

/** An input's name, as the node shows it. @param {import("./types").Node} node @param {string} name */
function inputLabel(node, name) {
    const input = node.inputs.find((other) => other.name === name);
    return input?.label ?? input?.localized_name ?? name;
}

/** What of the images the slider leaves out. @param {import("./types").ComparedPair[]} pairs */
function limits(pairs) {
    const [{ size, shown, batch }] = pairs;
    const lines = [];
    if (size[0] !== shown[0]) {
        lines.push(t("Scaled down from $full to $shown here.", { full: size.join(" x "), shown: shown.join(" x ") }));
    }
    if (batch > pairs.length) lines.push(t("The first $count of $all.", { count: pairs.length, all: batch }));
    return lines.join(" ");
}
