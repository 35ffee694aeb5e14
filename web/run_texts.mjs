// What runs say on nodes. Kept for the browser's tab, so that undo, a reload and another workflow do not lose it.

import { app } from "../../scripts/app.js";
import { isNode } from "./graph.mjs";

/** @typedef {import("./types").Node} Node */

const STORAGE = "ClearAttention.runTexts";
const MOST = 20; // workflows

/** By workflow, the oldest first, and by the id of the running node. @type {Map<string, Record<string, string>>} */
const kept = new Map(Object.entries(JSON.parse(sessionStorage.getItem(STORAGE) ?? "{}")));

/** The workflow that runs, which may no longer be the one that is shown. @type {string | undefined} */
let running;
/** The nodes of the workflow that have spoken in this run. @type {Set<string>} */
const spoken = new Set();

export function runStarted() {
    running = app.graph.id;
    spoken.clear();
}

/**
 * @param {string} id of the running node; 20.0.0.5 is a node that node 20 has expanded into
 * @param {string} text
 */
export function keepText(id, text) {
    const workflow = running ?? app.graph.id;
    const texts = kept.get(workflow) ?? {};
    const owner = ownerOf(id);
    if (!spoken.has(owner)) {
        for (const other of Object.keys(texts)) if (ownerOf(other) === owner) delete texts[other];
        spoken.add(owner);
    }
    texts[id] = text.replaceAll("  \n", "\n"); // Markdown's line break
    kept.delete(workflow);
    kept.set(workflow, texts);
    for (const oldest of [...kept.keys()].slice(0, -MOST)) kept.delete(oldest);
    try {
        sessionStorage.setItem(STORAGE, JSON.stringify(Object.fromEntries(kept)));
    } catch {
        // Full: the page keeps its drafts there too. The texts are then gone after a reload.
    }
}

/** @param {string} id */
function ownerOf(id) {
    return id.replace(/\..*$/, "");
}

/**
 * The texts of a node, and of those that it has expanded into.
 *
 * @param {Node} node
 * @returns {string[]}
 */
export function textsOf(node) {
    const texts = Object.entries(kept.get(app.graph.id) ?? {});
    return texts.filter(([id]) => isNode(node, ownerOf(id))).map(([, text]) => text);
}
