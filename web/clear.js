// CLEAR's part of the page: pictures on its nodes, and its settings.

import { app } from "../../scripts/app.js";

/** @typedef {import("./types").Node} Node */

// What is drawn is in panels.mjs, for ComfyUI's page fetches every .js of a pack when it starts.
const DRAWN = new Set(["CLEARApply", "CLEARMultiGPU", "CLEARTiledSampler", "CLEARWeightsLoader"]);
const BACKENDS = ["auto", "sdpa", "reference", "triton", "masked"];

/** @type {typeof import("./panels.mjs") | undefined} */
let panels;
let wanted = false; // there has been a node to draw on

async function loadPanels() {
    panels = await import("./panels.mjs");
    return panels;
}

/** @param {string} name @returns {any} */
function setting(name) {
    return app.extensionManager.setting.get(`ClearAttention.${name}`);
}

/** Give a new node its picture, at once where that can be. @param {Node} node */
async function draw(node) {
    wanted = true;
    if (!setting("Picture")) return;
    if (panels) {
        panels.follow(node, true);
    } else {
        const { follow } = await loadPanels();
        if (node.graph && setting("Picture")) follow(node, true);
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
            onChange: (shown) => wanted && void loadPanels().then(({ followAll }) => followAll(shown)),
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
    nodeCreated(node) {
        if (!node.comfyClass?.startsWith("CLEAR")) return;
        keepOwnValues(node);
        if (!DRAWN.has(node.comfyClass)) return;
        preset(node, "backend", setting("Backend"));
        if (setting("Download") === false) preset(node, "download", "never");
        for (const widget of node.widgets ?? []) {
            const before = widget.callback;
            widget.callback = function (...values) {
                before?.apply(this, values);
                panels?.refreshAll();
            };
        }
        void draw(node);
    },
    afterConfigureGraph: () => panels?.refreshAll(),
});
