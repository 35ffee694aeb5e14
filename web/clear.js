// CLEAR's extension of the page: its settings, and panels on its nodes.

import { app } from "../../scripts/app.js";

/** @typedef {import("./types").Node} Node */

// Nodes that show a picture of 1600 pixels: in the page's own width no word of it can be read.
const PICTURES = ["CLEARReport", "CLEARAttentionMap", "CLEARFactors"];
const PICTURE_SIZE = [560, 720];

// Words for which users search, by node: pages that know no search aliases, such as 1.32.9, search the names alone.
/** @type {Record<string, string[]>} */
const SEARCHED = { CLEARHighRes: ["hires fix", "upscale"] };

/** The nodes' own titles, by those that the search shows. @type {Map<string, string>} */
const ownTitles = new Map();

/** @type {typeof import("./panels.mjs") | undefined} */
let panels; // loaded with the first CLEAR node: the page fetches every .js of a pack when it starts
let hasNodes = false; // there has been a CLEAR node

async function loadPanels() {
    panels = await import("./panels.mjs");
    return panels;
}

/** The options of the setting; the server says which backends there are. @type {string[]} */
const backends = [];

/** @param {string} name @returns {any} */
function setting(name) {
    return app.extensionManager.setting.get(`ClearAttention.${name}`);
}

/** Give a new node its panel, at once if that module is loaded. @param {Node} node */
async function addPanel(node) {
    hasNodes = true;
    if (!setting("Picture")) return;
    if (panels) {
        panels.setPanel(node, true);
    } else {
        const { setPanel } = await loadPanels();
        // A node that another workflow has replaced meanwhile still names its graph; its panel would lie over the new.
        const stillThere = node.graph?.getNodeById(node.id) === node;
        if (stillThere && setting("Picture")) setPanel(node, true);
    }
}

/**
 * The page saves the text that a run has shown on a node behind the node's values, where an input that a later version
 * adds would read it as its own value.
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

/** @param {Node} node */
function refreshPanelsOnChange(node) {
    for (const widget of node.widgets ?? []) {
        const before = widget.callback;
        widget.callback = function (...values) {
            before?.apply(this, values);
            panels?.refreshAll();
        };
    }
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
            name: "Show panels on CLEAR nodes",
            tooltip: "The attention window, the bands, and what they cost.",
            type: "boolean",
            defaultValue: true,
            onChange: (shown) => hasNodes && void loadPanels().then(({ setAllPanels }) => setAllPanels(shown)),
        },
        {
            id: "ClearAttention.Download",
            category: ["CLEAR Attention", "New nodes", "Download"],
            name: "New Load CLEAR Weights nodes may download",
            tooltip: "Downloads a released file that is missing when the prompt runs. Existing nodes keep their value.",
            type: "boolean",
            defaultValue: true,
        },
        {
            id: "ClearAttention.Backend",
            category: ["CLEAR Attention", "New nodes", "Backend"],
            name: "Backend of new Apply CLEAR Attention nodes",
            tooltip: "auto selects the fastest one that runs here. Existing nodes keep their value.",
            type: "combo",
            options: backends,
            defaultValue: "auto",
        },
    ],
    addCustomNodeDefs(definitions) {
        const [, combo] = definitions.CLEARApply?.input?.required?.backend ?? [];
        backends.splice(0, backends.length, .../** @type {{ options?: string[] }} */ (combo)?.options ?? []);
    },
    // The names in the search and in the node library only. A server that sends aliases has a page that searches them.
    beforeRegisterVueAppNodeDefs(definitions) {
        for (const [index, definition] of definitions.entries()) {
            const { name, display_name: title } = definition;
            const words = SEARCHED[name]?.filter((word) => !title.toLowerCase().includes(word)) ?? [];
            if (!words.length || "search_aliases" in definition) continue;
            const display_name = `${title} (${words.join(", ")})`;
            ownTitles.set(display_name, title);
            definitions[index] = { ...definition, display_name };
        }
    },
    nodeCreated(node) {
        if (!node.comfyClass?.startsWith("CLEAR")) return;
        node.title = ownTitles.get(node.title) ?? node.title; // a node from the search has the title shown there
        keepOwnValues(node);
        refreshPanelsOnChange(node);
        if (PICTURES.includes(node.comfyClass)) {
            const [width, height] = node.size;
            node.setSize([Math.max(width, PICTURE_SIZE[0]), Math.max(height, PICTURE_SIZE[1])]);
        }
        if (node.comfyClass === "CLEARApply") preset(node, "backend", setting("Backend"));
        if (node.comfyClass === "CLEARWeightsLoader" && setting("Download") === false) preset(node, "download", "never");
        void addPanel(node);
    },
    afterConfigureGraph: () => panels?.refreshAll(),
});
