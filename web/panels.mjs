// Which nodes have a panel, and the events of the page that refresh it. Loaded with the first CLEAR node: see clear.js.

import { api } from "../../scripts/api.js";
import { withFullAttentionRun } from "./ab_panel.mjs";
import { onComparisonChanged } from "./ab_run.mjs";
import { bandsPanel } from "./bands_panel.mjs";
import { comparePanel } from "./compare_panel.mjs";
import { graphs, isNode } from "./graph.mjs";
import { sizeRead } from "./image_file.mjs";
import { loadTranslations } from "./i18n.mjs";
import { mapPanel } from "./map_panel.mjs";
import { addPanel, reattachPanel, removePageText, removePanel } from "./node_panel.mjs";
import { presetPanel } from "./preset_panel.mjs";
import { keepImages } from "./run_images.mjs";
import { emptyPanel, withRunText } from "./run_text.mjs";
import { keepText, runStarted, textsOf } from "./run_texts.mjs";
import { leaveHeightOutOfUndo } from "./undo_height.mjs";
import { upscalePanel } from "./upscale_panel.mjs";
import { weightsPanel } from "./weights_panel.mjs";
import { windowPanel } from "./window_panel.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").Panel} Panel */

/** @type {Record<string, (node: Node) => Panel>} */
const PANELS = {
    CLEARApply: (node) => withFullAttentionRun(node, windowPanel(node)),
    CLEARAttentionMap: mapPanel,
    CLEARCompare: comparePanel,
    CLEARHighRes: upscalePanel,
    CLEARMultiGPU: bandsPanel,
    CLEARPreset: (node) => withFullAttentionRun(node, presetPanel(node)),
    CLEARTiledSampler: bandsPanel,
    CLEARWeightsLoader: weightsPanel,
};

/** @type {WeakMap<Node, Panel>} */
const panels = new WeakMap();
let enabled = true; // the setting

/** The nodes of the workflow that may have a panel. @returns {Node[]} */
function panelNodes() {
    return graphs().flatMap((graph) => graph.nodes.filter((node) => node.comfyClass?.startsWith("CLEAR")));
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
    if (enabled) panelNodes().forEach((node) => setPanel(node, true));
    forEachPanel((panel, node) => {
        reattachPanel(node, panel);
        panel.refresh();
    });
}

/**
 * Add or remove a node's panel. Nodes that show nothing before a run have one when there is a text of a run.
 *
 * @param {Node} node
 * @param {boolean} shown
 */
export function setPanel(node, shown) {
    if (shown && !panels.has(node)) {
        const make = PANELS[node.comfyClass ?? ""] ?? (textsOf(node).length ? emptyPanel : undefined);
        if (!make) return;
        const panel = withRunText(node, make(node));
        addPanel(node, panel);
        panels.set(node, panel);
        leaveHeightOutOfUndo(node);
        void loadTranslations(rebuildAll);
        queueMicrotask(() => panel.refresh()); // its values and links are set after its creation
        afterDrawing(() => panels.get(node) === panel && reattachPanel(node, panel));
    } else if (!shown && panels.has(node)) {
        removePanel(node);
        panels.delete(node);
    }
}

/** Once the page has drawn what was added. @param {() => void} action */
function afterDrawing(action) {
    requestAnimationFrame(() => requestAnimationFrame(action));
}

/** @param {boolean} shown */
export function setAllPanels(shown) {
    enabled = shown;
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
sizeRead.addEventListener("read", refreshAll);
api.addEventListener("execution_start", runStarted);
// The page itself draws a text in three lines, only on nodes of the graph in view, and none of those that expand.
api.addEventListener("progress_text", ({ detail: { nodeId, text } }) => {
    const nodes = panelNodes().filter((node) => isNode(node, String(nodeId)));
    if (!nodes.length) return;
    keepText(String(nodeId), text);
    if (!enabled) return;
    for (const node of nodes) {
        setPanel(node, true);
        panels.get(node)?.refresh();
        queueMicrotask(() => removePageText(node)); // after the page's own listener
    }
});
api.addEventListener("executed", ({ detail }) => {
    const id = String(detail.display_node ?? detail.node);
    if (keepImages(id, detail.output)) forEachPanel((panel, node) => isNode(node, id) && panel.refresh());
});
// All nodes: while one compares, the buttons of the others wait.
onComparisonChanged(() => forEachPanel((panel) => panel.refresh()));
for (const end of /** @type {const} */ (["execution_success", "execution_error", "execution_interrupted"])) {
    api.addEventListener(end, () => forEachPanel((panel) => panel.runEnded?.()));
}
// Another server may have other files and other downloads.
api.addEventListener("reconnected", () => forEachPanel((panel) => panel.runEnded?.()));
/** @type {EventTarget} */ (api).addEventListener("clear_attention.download", (event) => {
    const state = /** @type {CustomEvent<import("./types").DownloadState>} */ (event).detail;
    forEachPanel((panel) => panel.downloadChanged?.(state));
});
/** @type {EventTarget} */ (api).addEventListener("clear_attention.bands", (event) => {
    const progress = /** @type {CustomEvent<import("./types").BandProgress>} */ (event).detail;
    forEachPanel((panel, node) => isNode(node, progress.node) && panel.progressed?.(progress));
});
/** @type {EventTarget} */ (api).addEventListener("clear_attention.machines", () => {
    forEachPanel((panel) => panel.machinesChanged?.());
});
/** @type {EventTarget} */ (api).addEventListener("clear_attention.upscale", (event) => {
    const message = /** @type {CustomEvent<import("./types").UpscaleEvent>} */ (event).detail;
    forEachPanel((panel, node) => isNode(node, message.node) && panel.upscaled?.(message));
});
