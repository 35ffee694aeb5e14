// Heights of the parts of a panel.

import { growToFit } from "./node_panel.mjs";

// As in clear.css: of .clear-panel, between its parts, and the least of .clear-columns.
export const PADDING = 8;
export const GAP = 6;
export const COLUMNS = 146;

/**
 * The height of an element that is as high as its content, 0 while it is hidden. The node grows with it.
 *
 * @param {import("./types").Node} node
 * @param {HTMLElement} element
 * @returns {() => number}
 */
export function measured(node, element) {
    let height = 0;
    // Not measured when the node asks for it: it does so in every frame. Out of view everything is 0 high.
    new ResizeObserver(() => {
        if (!element.offsetHeight || element.offsetHeight === height) return;
        height = element.offsetHeight;
        growToFit(node);
    }).observe(element);
    return () => (element.hidden ? 0 : height);
}
