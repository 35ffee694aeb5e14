// What a panel needs to know from the graph around its node: the image's size and the settings of Apply CLEAR Attention.
// Links are followed through reroutes, bypassed nodes and subgraphs, reading only: the page's own graphToPrompt() runs
// widgets' serializeValue(), which may upload, record, or draw a random prompt.

import { app } from "../../scripts/app.js";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").Graph} Graph */

const BYPASSED = 4; // LiteGraph's mode

// Nodes whose output image or latent is as large as their input.
const KEEP_SIZE = new Set([
    ..."VAEEncode VAEEncodeTiled VAEEncodeForInpaint VAEDecode VAEDecodeTiled SetLatentNoiseMask".split(" "),
    ..."InpaintModelConditioning InstructPixToPixConditioning RepeatLatentBatch Canny ImageBlur ImageInvert".split(" "),
    ..."KSampler KSamplerAdvanced SamplerCustom SamplerCustomAdvanced CLEARTiledSampler".split(" "),
]);

/** By the class of a node that applies CLEAR: its inputs that the server's routes take, by the same names. */
/** @type {Record<string, string[]>} */
const SETTINGS = {
    CLEARApply: [
        ..."radius down_factor backend ntk_factor proportional_attention start_percent end_percent blocks".split(" "),
    ],
    CLEARPreset: ["preset"],
};

/** Every graph of the workflow: the root graph, then the subgraphs. @returns {Graph[]} */
export function graphs() {
    return [app.graph, .../** @type {Iterable<any>} */ (app.graph.subgraphs.values())];
}

/**
 * The size in pixels of the image that a node works on, or undefined.
 *
 * @param {Node} node
 * @returns {[width: number, height: number] | undefined}
 */
export function imageSize(node) {
    const visited = new Set();
    const downstream = [node];
    for (let next = downstream.shift(); next; next = downstream.shift()) {
        if (visited.has(next)) continue;
        visited.add(next);
        const latent = next.inputs.findIndex((input) => input.type === "LATENT");
        if (latent >= 0) {
            const size = sizeFrom(originOf(next, latent));
            if (size) return size;
        } else {
            const megapixels = Number(valueOf(next, "target_megapixels"));
            if (megapixels) return squareOf(megapixels);
            for (const output of next.outputs) {
                if (next.graph) downstream.push(...targetsOf(next.graph, output.links ?? []));
            }
        }
    }
    return undefined;
}

/** @param {number} megapixels @returns {[number, number]} */
function squareOf(megapixels) {
    const side = Math.round(Math.sqrt(megapixels * 1e6) / 16) * 16;
    return [side, side];
}

/**
 * @param {import("./types").Origin | undefined} origin
 * @param {number} depth how many more nodes to follow upstream
 * @returns {[number, number] | undefined}
 */
function sizeFrom(origin, depth = 20) {
    const node = origin?.node;
    if (!node || !depth) return undefined;
    const [width, height] = [Number(valueOf(node, "width")), Number(valueOf(node, "height"))];
    if (width && height) return [width, height];
    const image = /** @type {import("./types").FullNode} */ (node).imgs?.[0];
    if (node.comfyClass === "LoadImage" && image?.naturalWidth) return [image.naturalWidth, image.naturalHeight];
    if (!KEEP_SIZE.has(node.comfyClass ?? "")) return undefined;
    for (const kind of ["LATENT", "IMAGE"]) {
        const index = node.inputs.findIndex((input) => input.type === kind && input.link != null);
        if (index >= 0) return sizeFrom(originOf(node, index), depth - 1);
    }
    return undefined;
}

/**
 * The settings of the Apply CLEAR Attention or CLEAR 4K / 8K upstream of a node, for the server; undefined if there is
 * none. A value that is known only when the prompt runs is undefined.
 *
 * @param {Node} node that node itself, or one downstream
 * @returns {Record<string, unknown> | undefined}
 */
export function clearSettings(node) {
    const apply = applyBefore(node);
    if (!apply) return undefined;
    const settings = Object.fromEntries(settingsOf(apply).map((name) => [name, valueOf(apply, name)]));
    const loader = originOf(apply, apply.inputs.findIndex((input) => input.name === "weights"))?.node;
    return loader ? { ...settings, weights: valueOf(loader, "weights_name") } : settings;
}

/** @param {Node} node */
function settingsOf(node) {
    return SETTINGS[node.comfyClass ?? ""] ?? [];
}

/** @param {Node} node @returns {Node | undefined} */
function applyBefore(node, depth = 50) {
    if (settingsOf(node).length) return node;
    const index = node.inputs.findIndex((input) => ["MODEL", "GUIDER"].includes(String(input.type)));
    const before = depth ? originOf(node, index)?.node : undefined;
    return before && applyBefore(before, depth - 1);
}

/**
 * The value of a widget, or of what is linked to its input; undefined if it is known only when the prompt runs.
 *
 * @param {Node} node
 * @param {string} name
 * @returns {unknown}
 */
export function valueOf(node, name) {
    const index = node.inputs.findIndex((input) => input.name === name && input.link != null);
    if (index < 0) return node.widgets?.find((widget) => widget.name === name)?.value;
    const origin = originOf(node, index);
    if (!origin?.node) return origin?.value;
    // A primitive's first widget is its value.
    return /^Primitive/.test(origin.node.type) ? origin.node.widgets?.[0]?.value : undefined;
}

/**
 * The origin of an input's link.
 *
 * @param {Node} node
 * @param {number} index of the input; -1 for none
 * @returns {import("./types").Origin | undefined}
 */
function originOf(node, index) {
    const link = node.inputs[index]?.link;
    return link == null || !node.graph ? undefined : originOfLink(node.graph, link);
}

/**
 * @param {NonNullable<Node["graph"]>} graph
 * @param {number} id
 * @returns {import("./types").Origin | undefined}
 */
function originOfLink(graph, id) {
    const link = graph.getLink(id);
    if (!link) return undefined;
    if (link.originIsIoNode) {
        const outer = holderOf(graph);
        const input = outer?.inputs[link.origin_slot];
        if (!outer || !input) return undefined;
        if (input.link != null) return originOf(outer, link.origin_slot);
        return { value: outer.widgets?.find((widget) => widget.name === input.name)?.value };
    }
    const node = graph.getNodeById(link.origin_id);
    if (node?.isSubgraphNode()) {
        const inner = node.subgraph.outputs[link.origin_slot]?.linkIds[0];
        return inner === undefined ? undefined : originOfLink(node.subgraph, inner);
    }
    if (node?.type === "Reroute") return originOf(node, 0);
    if (node?.mode === BYPASSED) return originOf(node, bypassedInput(node, link.origin_slot));
    return node ? { node } : undefined;
}

/**
 * The input that a bypassed node passes on in place of an output: as the page does, at the same index if the types
 * agree, else the first of that type.
 *
 * @param {Node} node
 * @param {number} slot of the output
 */
function bypassedInput(node, slot) {
    const type = node.outputs[slot].type; // not the link's: into a Reroute that is "*"
    return node.inputs[slot]?.type === type ? slot : node.inputs.findIndex((input) => input.type === type);
}

/**
 * The nodes that links lead to.
 *
 * @param {NonNullable<Node["graph"]>} graph
 * @param {number[]} ids
 * @returns {Node[]}
 */
function targetsOf(graph, ids) {
    return ids.flatMap((id) => {
        const link = graph.getLink(id);
        if (!link) return [];
        if (link.targetIsIoNode) {
            const outer = holderOf(graph);
            return outer?.graph ? targetsOf(outer.graph, outer.outputs[link.target_slot]?.links ?? []) : [];
        }
        const node = graph.getNodeById(link.target_id);
        if (!node?.isSubgraphNode()) return node ? [node] : [];
        return targetsOf(node.subgraph, node.subgraph.inputs[link.target_slot]?.linkIds ?? []);
    });
}

/** The node of a subgraph; the first, if there are several. @param {unknown} subgraph @returns {Node | undefined} */
function holderOf(subgraph) {
    const nodes = graphs().flatMap((graph) => graph.nodes);
    return nodes.find((node) => node.isSubgraphNode() && node.subgraph === subgraph);
}

/**
 * A change that the user makes on a panel: one undo step, and the workflow is marked as modified.
 *
 * @param {() => void} make
 */
export function changeGraph(make) {
    app.canvas.emitBeforeChange();
    try {
        make();
    } finally {
        app.canvas.emitAfterChange();
        app.graph.setDirtyCanvas(true, true);
    }
}

/**
 * Whether a running node's id means this one: 12, 7:3 inside a subgraph, 20.0.0.5 for what node 20 expands into.
 *
 * @param {Node} node
 * @param {string} id
 */
export function isNode(node, id) {
    /** @type {Graph | undefined} */
    let graph = app.graph;
    const path = id.replace(/\..*$/, "").split(":");
    for (const part of path.slice(0, -1)) {
        const holder = graph?.getNodeById(part);
        graph = holder?.isSubgraphNode() ? /** @type {any} */ (holder.subgraph) : undefined;
    }
    return graph !== undefined && graph === node.graph && String(node.id) === path.at(-1);
}
