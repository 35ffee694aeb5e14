// What runs say on nodes.

import { app } from "../../scripts/app.js";
import { isNode, ownerOf } from "./graph.mjs";
import { sessionStore } from "./session_store.mjs";

/** @typedef {import("./types").Node} Node */

/** By the id of the running node. */
const store = /** @type {ReturnType<typeof sessionStore<string>>} */ (sessionStore("ClearAttention.runTexts"));

/** The workflow that runs, which may no longer be the one that is shown. @type {string | undefined} */
let running;
/** The nodes of the workflow that have spoken in this run. @type {Set<string>} */
const spoken = new Set();

export function runStarted() {
    running = app.graph.id;
    spoken.clear();
}

/** The id of the workflow that the newest messages of the server are about. */
export function runningWorkflow() {
    return running ?? app.graph.id;
}

/**
 * @param {string} id of the running node; 20.0.0.5 is a node that node 20 has expanded into
 * @param {string} text
 */
export function keepText(id, text) {
    const workflow = runningWorkflow();
    const texts = store.of(workflow);
    const owner = ownerOf(id);
    if (!spoken.has(owner)) {
        for (const other of Object.keys(texts)) if (ownerOf(other) === owner) delete texts[other];
        spoken.add(owner);
    }
    texts[id] = text.replaceAll("  \n", "\n"); // Markdown's line break
    store.save(workflow, texts);
}

/**
 * The texts of a node, and of those that it has expanded into.
 *
 * @param {Node} node
 * @returns {string[]}
 */
export function textsOf(node) {
    const texts = Object.entries(store.of(app.graph.id));
    return texts.filter(([id]) => isNode(node, id)).map(([, text]) => text);
}
