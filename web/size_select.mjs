// The list of image sizes on a panel: the size found in the graph, or one that the user chooses.

import { html } from "./dom.mjs";
import { changeGraph, imageSize } from "./graph.mjs";
import { t } from "./i18n.mjs";

const SIDES = [1024, 2048, 4096, 8192, 16384];
const FROM_GRAPH = 0;

/**
 * The choice is kept with the node, in its properties.
 *
 * @param {import("./types").Node} node
 * @param {() => void} changed
 */
export function sizeSelect(node, changed) {
    const select = html("select", { "aria-label": t("Image size") });
    select.addEventListener("change", () => {
        changeGraph(() => {
            node.properties.clear_image = Number(select.value);
        });
        changed();
    });

    /** @param {string} label of the size in the graph; "" where there is none */
    function fill(label) {
        const options = SIDES.map((side) => html("option", { value: side }, `${side} x ${side}`));
        if (label) options.unshift(html("option", { value: FROM_GRAPH }, label));
        select.replaceChildren(...options);
    }

    let filled = /** @type {string | undefined} */ (undefined);
    return {
        element: select,
        /** The size in pixels. @returns {[width: number, height: number]} */
        update() {
            const found = imageSize(node);
            const chosen = Number(node.properties.clear_image) || (found ? FROM_GRAPH : SIDES[0]);
            const label = found ? t("$size (graph)", { size: found.join(" x ") }) : "";
            if (label !== filled) fill((filled = label)); // not every time: that would close an open list
            select.value = String(chosen);
            return chosen || !found ? [chosen, chosen] : found;
        },
    };
}
