// Which nodes are drawn on, and what of the page they follow. Loaded with the first of them: see clear.js.

import { api } from "../../scripts/api.js";
import { bandsPanel } from "./bands_picture.mjs";
import { dress, showOwn, undress } from "./dress.mjs";
import { graphs, isNode } from "./graph.mjs";
import { weightsPanel } from "./weights_line.mjs";
import { windowPanel } from "./window_picture.mjs";
import { loadWords } from "./words.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").Panel} Panel */

/** @type {Record<string, (node: Node) => Panel>} */
const PANELS = {
    CLEARApply: windowPanel,
    CLEARMultiGPU: bandsPanel,
    CLEARTiledSampler: bandsPanel,
    CLEARWeightsLoader: weightsPanel,
};

/** @type {WeakMap<Node, Panel>} */
const panels = new WeakMap();

/** The nodes of the workflow that may have a panel. @returns {Node[]} */
function drawnNodes() {
    return graphs().flatMap((graph) => graph.nodes.filter((node) => PANELS[node.comfyClass ?? ""]));
}

/** @param {(panel: Panel, node: Node) => void} tell */
function toPanels(tell) {
    for (const node of drawnNodes()) {
        const panel = panels.get(node);
        if (panel) tell(panel, node);
    }
}

/** The graph has changed. */
export function refreshAll() {
    toPanels((panel, node) => {
        showOwn(node, panel);
        panel.refresh();
    });
}

/** Give a node its panel, or take it away. @param {Node} node @param {boolean} wanted */
export function follow(node, wanted) {
    const there = panels.has(node);
    if (wanted && !there) {
        const panel = PANELS[node.comfyClass ?? ""](node);
        dress(node, panel);
        panels.set(node, panel);
        void loadWords(redrawAll);
        queueMicrotask(() => panel.refresh()); // its values and links come after it
    } else if (!wanted && there) {
        undress(node);
        panels.delete(node);
    }
}

/** @param {boolean} wanted */
export function followAll(wanted) {
    drawnNodes().forEach((node) => follow(node, wanted));
}

/** The language's words have come. */
function redrawAll() {
    for (const node of drawnNodes().filter((node) => panels.has(node))) {
        const [width, height] = node.size;
        follow(node, false);
        follow(node, true);
        node.setSize([width, height]);
    }
}

api.addEventListener("graphChanged", refreshAll);
for (const end of /** @type {const} */ (["execution_success", "execution_error", "execution_interrupted"])) {
    api.addEventListener(end, () => toPanels((panel) => panel.runEnded?.()));
}
/** @type {EventTarget} */ (api).addEventListener("clear_attention.bands", (event) => {
    const progress = /** @type {CustomEvent<import("./types").BandProgress>} */ (event).detail;
    toPanels((panel, node) => isNode(node, progress.node) && panel.moved?.(progress));
});
