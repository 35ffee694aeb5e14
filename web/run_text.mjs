// The text of the last run at the foot of a panel.

import { html } from "./dom.mjs";
import { PADDING, measured } from "./measured.mjs";
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
    const height = measured(node, element);

    return {
        ...panel,
        height: () => panel.height() + height(),
        refresh() {
            panel.refresh();
            const texts = textsOf(node).filter((text) => panel.concerns?.(text) ?? true);
            const text = texts.join("\n\n");
            if (text !== element.textContent) element.textContent = text;
            element.hidden = !text;
        },
    };
}

/** For nodes that show nothing else. @returns {Panel} */
export function emptyPanel() {
    return { element: html("div", { class: "clear-panel" }), height: () => 2 * PADDING, compact: true, refresh() {} };
}
