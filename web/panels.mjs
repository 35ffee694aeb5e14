// Which nodes have a panel, and the events of the page that refresh it. Loaded with the first CLEAR node: see clear.js.

import { api } from "../../scripts/api.js";
import { bandsPanel } from "./bands_panel.mjs";
import { graphs, isNode } from "./graph.mjs";
import { loadTranslations } from "./i18n.mjs";
import { addPanel, reattachPanel, removePanel } from "./node_panel.mjs";
import { weightsPanel } from "./weights_panel.mjs";
import { windowPanel } from "./window_panel.mjs";

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
function panelNodes() {
    return graphs().flatMap((graph) => graph.nodes.filter((node) => PANELS[node.comfyClass ?? ""]));
}

/** @param {(panel: Panel, node: Node) => void} action */
function forEachPanel(action) {
    for (const node of panelNodes()) {
        const panel = panels.get(node);
        if (panel) action(panel, node);
    }
}

/** The graph has changed. */
export function refreshAll() {
    forEachPanel((panel, node) => {
        reattachPanel(node, panel);
        panel.refresh();
    });
}

/** Add or remove a node's panel; most nodes have none. @param {Node} node @param {boolean} shown */
export function setPanel(node, shown) {
    const make = PANELS[node.comfyClass ?? ""];
    if (!make) return;
    if (shown && !panels.has(node)) {
        const panel = make(node);
        addPanel(node, panel);
        panels.set(node, panel);
        void loadTranslations(rebuildAll);
        queueMicrotask(() => panel.refresh()); // its values and links are set after its creation
    } else if (!shown && panels.has(node)) {
        removePanel(node);
        panels.delete(node);
    }
}

/** @param {boolean} shown */
export function setAllPanels(shown) {
    panelNodes().forEach((node) => setPanel(node, shown));
}

/** The translations have arrived. */
function rebuildAll() {
    for (const node of panelNodes().filter((node) => panels.has(node))) {
        const [width, height] = node.size;
        setPanel(node, false);
        setPanel(node, true);
        node.setSize([width, height]);
    }
}

api.addEventListener("graphChanged", refreshAll);
for (const end of /** @type {const} */ (["execution_success", "execution_error", "execution_interrupted"])) {
    api.addEventListener(end, () => forEachPanel((panel) => panel.runEnded?.()));
}
/** @type {EventTarget} */ (api).addEventListener("clear_attention.bands", (event) => {
    const progress = /** @type {CustomEvent<import("./types").BandProgress>} */ (event).detail;
    forEachPanel((panel, node) => isNode(node, progress.node) && panel.progressed?.(progress));
});
