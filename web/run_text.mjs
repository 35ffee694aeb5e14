// The text of the last run at the foot of a panel.

import { html } from "./dom.mjs";
import { growToFit } from "./node_panel.mjs";
import { textsOf } from "./run_texts.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").Panel} Panel */

/**
 * @param {Node} node
 * @param {Panel} panel
 * @returns {Panel}
 */
export function withRunText(node, panel) {
    const element = html("p", { class: "clear-run-text", "aria-live": "polite" });
    panel.element.append(element);
    let height = 0;

    // Not measured when the node asks for its height: it does so in every frame. Out of view everything is 0 high.
    new ResizeObserver(() => {
        if (!element.offsetHeight || element.offsetHeight === height) return;
        height = element.offsetHeight;
        growToFit(node);
    }).observe(element);

    return {
        ...panel,
        height: () => panel.height() + (element.hidden ? 0 : height),
        refresh() {
            panel.refresh();
            const texts = textsOf(node).filter((text) => panel.concerns?.(text) ?? true);
            const text = texts.join("\n\n");
            if (text !== element.textContent) element.textContent = text;
            element.hidden = !text;
        },
    };
}

const PADDING = 8; // of .clear-panel

/** For nodes that show nothing else. @returns {Panel} */
export function emptyPanel() {
    return { element: html("div", { class: "clear-panel" }), height: () => 2 * PADDING, compact: true, refresh() {} };
}
