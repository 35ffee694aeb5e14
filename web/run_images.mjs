// The images that runs have sent under keys of this pack: the pairs of Compare Images, the maps of CLEAR Attention Map.

import { app } from "../../scripts/app.js";
import { isNode } from "./graph.mjs";
import { runningWorkflow } from "./run_texts.mjs";
import { sessionStore } from "./session_store.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").RunOutput} RunOutput */

/** By the id of the node that ran. */
const store = /** @type {ReturnType<typeof sessionStore<RunOutput>>} */ (sessionStore("ClearAttention.runImages"));

/**
 * Keep the images of a node's output, if it has some.
 *
 * @param {string} id of the node that ran
 * @param {RunOutput | null | undefined} output
 * @returns {boolean} whether it has some
 */
export function keepImages(id, output) {
    if (!output?.clear_compare && !output?.clear_map) return false;
    const { clear_compare, clear_map } = output;
    store.put(runningWorkflow(), id, { clear_compare, clear_map });
    return true;
}

/** @param {Node} node */
export function pairsOf(node) {
    return imagesOf(node).clear_compare ?? [];
}

/** @param {Node} node */
export function mapOf(node) {
    return imagesOf(node).clear_map?.[0];
}

/** @param {Node} node @returns {RunOutput} */
function imagesOf(node) {
    const all = Object.entries(store.of(app.graph.id));
    return all.find(([id]) => isNode(node, id))?.[1] ?? {};
}
