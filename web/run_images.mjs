// The pairs of images that Compare Images has sent.

import { app } from "../../scripts/app.js";
import { isNode } from "./graph.mjs";
import { runningWorkflow } from "./run_texts.mjs";
import { sessionStore } from "./session_store.mjs";

/** @typedef {import("./types").ComparedPair} ComparedPair */

/** By the id of the node that ran. */
const store = /** @type {ReturnType<typeof sessionStore<ComparedPair[]>>} */ (
    sessionStore("ClearAttention.comparedPairs")
);

/**
 * Keep the pairs of a node's output, if it has some.
 *
 * @param {string} id of the node that ran
 * @param {{ clear_compare?: ComparedPair[] } | null | undefined} output
 * @returns {boolean} whether it has some
 */
export function keepPairs(id, output) {
    if (!output?.clear_compare) return false;
    const workflow = runningWorkflow();
    store.save(workflow, { ...store.of(workflow), [id]: output.clear_compare });
    return true;
}

/** @param {import("./types").Node} node @returns {ComparedPair[]} */
export function pairsOf(node) {
    const all = Object.entries(store.of(app.graph.id));
    return all.find(([id]) => isNode(node, id))?.[1] ?? [];
}
