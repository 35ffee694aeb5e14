// The height of a node follows the text on its panel. The page compares the whole graph to find the steps of undo, and
// would take that for a step of its own, after each undo again: undo would never reach what the user did.

import { app } from "../../scripts/app.js";

/** @typedef {import("./types").Node} Node */

/** @type {WeakSet<Node>} */
const done = new WeakSet();

/**
 * Leave the heights of a node out of the page's history: the page's newest state gets the present height before the two
 * are compared.
 *
 * @param {Node} node
 */
export function leaveHeightOutOfUndo(node) {
    if (done.has(node)) return;
    done.add(node);
    const before = node.onSerialize;
    node.onSerialize = function (saved) {
        before?.call(this, saved);
        const known = inHistory(this);
        if (known?.size) known.size[1] = saved.size[1];
    };
}

/**
 * The node in the page's newest state.
 *
 * @param {Node} node
 * @returns {{ size?: number[] } | undefined}
 */
function inHistory(node) {
    const { workflow } = /** @type {any} */ (app.extensionManager); // its published types leave it out
    const state = workflow.activeWorkflow?.changeTracker?.activeState;
    // Newer pages give a node's id as text and save it as a number.
    /** @param {{ id: unknown }[] | undefined} list @param {unknown} id */
    const find = (list, id) => /** @type {any} */ (list?.find((one) => String(one.id) === String(id)));
    return find((find(state?.definitions?.subgraphs, node.graph?.id) ?? state)?.nodes, node.id);
}
