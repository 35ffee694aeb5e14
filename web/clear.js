// CLEAR's part of the page: pictures on its nodes, and its settings.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { bandsPanel } from "./bands_picture.js";
import { dress, showOwn, undress } from "./dress.js";
import { graphs, isNode } from "./graph.js";
import { weightsPanel } from "./weights_line.js";
import { windowPanel } from "./window_picture.js";
import { loadWords } from "./words.js";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").Panel} Panel */

/** @type {Record<string, (node: Node) => Panel>} */
const PANELS = {
    CLEARApply: windowPanel,
    CLEARMultiGPU: bandsPanel,
    CLEARTiledSampler: bandsPanel,
    CLEARWeightsLoader: weightsPanel,
};
const BACKENDS = ["auto", "sdpa", "reference", "triton", "masked"];

/** @type {WeakMap<Node, Panel>} */
const panels = new WeakMap();

/** @param {string} name @returns {any} */
function setting(name) {
    return app.extensionManager.setting.get(`ClearAttention.${name}`);
}

/** The nodes of the workflow that may have a panel. @returns {Node[]} */
function clearNodes() {
    return graphs().flatMap((graph) => graph.nodes.filter((node) => PANELS[node.comfyClass ?? ""]));
}

/** @param {(panel: Panel, node: Node) => void} tell */
function toPanels(tell) {
    for (const node of clearNodes()) {
        const panel = panels.get(node);
        if (panel) tell(panel, node);
    }
}

function refreshAll() {
    toPanels((panel, node) => {
        showOwn(node, panel);
        panel.refresh();
    });
}

/** Give a node its panel, or take it away. @param {Node} node @param {boolean} wanted */
function follow(node, wanted) {
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

/** The language's words have come. */
function redrawAll() {
    for (const node of clearNodes().filter((node) => panels.has(node))) {
        const [width, height] = node.size;
        follow(node, false);
        follow(node, true);
        node.setSize([width, height]);
    }
}

/**
 * The page saves the text that a run has shown on a node behind the node's values. There an input that a later version
 * adds will look for its own.
 *
 * @param {Node} node
 */
function keepOwnValues(node) {
    const count = node.widgets?.length ?? 0;
    const before = node.onSerialize;
    node.onSerialize = function (saved) {
        before?.call(this, saved);
        saved.widgets_values = saved.widgets_values?.slice(0, count);
    };
}

/** @param {Node} node @param {string} name @param {string} value */
function preset(node, name, value) {
    const widget = node.widgets?.find((other) => other.name === name);
    const values = widget?.options.values;
    if (widget && Array.isArray(values) && values.includes(value)) widget.value = value;
}

app.registerExtension({
    name: "ClearAttention",
    settings: [
        {
            id: "ClearAttention.Picture",
            category: ["CLEAR Attention", "Nodes", "Picture"],
            name: "Show pictures on CLEAR's nodes",
            tooltip: "The window, the bands, and what they cost.",
            type: "boolean",
            defaultValue: true,
            onChange: (wanted) => app.graph && clearNodes().forEach((node) => follow(node, wanted)),
        },
        {
            id: "ClearAttention.Download",
            category: ["CLEAR Attention", "New nodes", "Download"],
            name: "New Load CLEAR Weights nodes may download",
            tooltip: "A released file that is missing, when the prompt runs. Nodes that are there keep what they have.",
            type: "boolean",
            defaultValue: true,
        },
        {
            id: "ClearAttention.Backend",
            category: ["CLEAR Attention", "New nodes", "Backend"],
            name: "Backend of new Apply CLEAR Attention nodes",
            tooltip: "auto takes the fastest that runs here. Nodes that are there keep what they have.",
            type: "combo",
            options: BACKENDS,
            defaultValue: "auto",
        },
    ],
    setup() {
        api.addEventListener("graphChanged", refreshAll);
        for (const end of /** @type {const} */ (["execution_success", "execution_error", "execution_interrupted"])) {
            api.addEventListener(end, () => toPanels((panel) => panel.runEnded?.()));
        }
        /** @type {EventTarget} */ (api).addEventListener("clear_attention.bands", (event) => {
            const progress = /** @type {CustomEvent<import("./types").BandProgress>} */ (event).detail;
            toPanels((panel, node) => isNode(node, progress.node) && panel.moved?.(progress));
        });
    },
    nodeCreated(node) {
        if (!node.comfyClass?.startsWith("CLEAR")) return;
        keepOwnValues(node);
        if (!PANELS[node.comfyClass]) return;
        preset(node, "backend", setting("Backend"));
        if (setting("Download") === false) preset(node, "download", "never");
        for (const widget of node.widgets ?? []) {
            const before = widget.callback;
            widget.callback = function (...values) {
                before?.apply(this, values);
                refreshAll();
            };
        }
        follow(node, setting("Picture"));
    },
    afterConfigureGraph: refreshAll,
});
