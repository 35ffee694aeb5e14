// What a panel needs to know from the graph around its node: the image's size and the settings of Apply CLEAR Attention.
// Links are followed through reroutes, bypassed nodes and subgraphs, reading only: the page's own graphToPrompt() runs
// widgets' serializeValue(), which may upload, record, or draw a random prompt.

import { app } from "../../scripts/app.js";
import { fileSize } from "./image_file.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").Graph} Graph */

const BYPASSED = 4; // LiteGraph's mode

// Nodes whose output image or latent is as large as their input.
const KEEP_SIZE = new Set([
    ..."VAEEncode VAEEncodeTiled VAEEncodeForInpaint VAEDecode VAEDecodeTiled SetLatentNoiseMask".split(" "),
    ..."InpaintModelConditioning InstructPixToPixConditioning RepeatLatentBatch Canny ImageBlur ImageInvert".split(" "),
    ..."CLEARTiledSampler CLEARVAEEncode CLEARVAEDecode".split(" "),
    ..."KSampler KSamplerAdvanced SamplerCustom SamplerCustomAdvanced".split(" "),
]);

/** By the class of a node that applies CLEAR: its inputs that the server's routes take, by the same names. */
/** @type {Record<string, string[]>} */
const SETTINGS = {
    CLEARApply: [
        ..."radius down_factor backend ntk_factor proportional_attention start_percent end_percent blocks".split(" "),
    ],
    CLEARPreset: ["preset"],
};

/** @typedef {[width: number, height: number]} Size */

/**
 * Core nodes that enlarge by a value of theirs, rounding as they do.
 *
 * @type {Record<string, (node: Node, size: Size) => Size | undefined>}
 */
const RESIZE = {
    LatentUpscaleBy: (node, size) => scaled(size, Number(valueOf(node, "scale_by")), 8),
    ImageScaleBy: (node, size) => scaled(size, Number(valueOf(node, "scale_by")), 1),
    ImageScaleToTotalPixels: (node, size) =>
        scaled(size, Math.sqrt((Number(valueOf(node, "megapixels")) * 1024 ** 2) / (size[0] * size[1])), 1),
};

/**
 * @param {Size} size in pixels
 * @param {number} times NaN where it is not known
 * @param {number} unit pixels that a side is rounded to
 * @returns {Size | undefined}
 */
function scaled([width, height], times, unit) {
    return times ? [Math.round((width / unit) * times) * unit, Math.round((height / unit) * times) * unit] : undefined;
}

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
    for (const next of downstream(node)) {
        const latent = latentInput(next);
        if (latent >= 0) {
            const size = sizeFrom(originOf(next, latent));
            if (size) return size;
        } else {
            const upscaled = next.comfyClass === "CLEARHighRes" && upscaledSize(next);
            if (upscaled) return upscaled;
        }
    }
    return undefined;
}

/**
 * The node itself and those that use its outputs, nearest first, as far as the first that takes a latent.
 *
 * @param {Node} node
 */
function* downstream(node) {
    const found = new Set([node]);
    for (const next of found) {
        yield next;
        if (latentInput(next) >= 0 || !next.graph) continue;
        for (const output of next.outputs) {
            for (const target of targetsOf(next.graph, output.links ?? [])) found.add(target);
        }
    }
}

/** The index of a node's input for a latent, or -1. @param {Node} node */
function latentInput(node) {
    return node.inputs.findIndex((input) => input.type === "LATENT");
}

/**
 * What Upscale Image makes of the image that a node works on, in pixels; undefined where there is none, or where a size
 * is known only when the prompt runs.
 *
 * @param {Node} node
 * @returns {{ from: Size, to: Size, crop: boolean } | undefined}
 */
export function resizing(node) {
    for (const next of downstream(node)) {
        const resize = nearestResize(originOf(next, latentInput(next)));
        if (!resize) continue;
        const [from, to] = [sourceSize(resize), sizeFrom({ node: resize })];
        return from && to && { from, to, crop: valueOf(resize, "crop") === "center" };
    }
    return undefined;
}

/**
 * The Upscale Image upstream, if what lies between keeps the size.
 *
 * @param {import("./types").Origin | undefined} origin
 * @returns {Node | undefined}
 */
function nearestResize(origin, depth = 20) {
    const node = origin?.node;
    if (!node || !depth) return undefined;
    if (node.comfyClass === "ImageScale") return node;
    return KEEP_SIZE.has(node.comfyClass ?? "") ? nearestResize(originOf(node, sizedInput(node)), depth - 1) : undefined;
}

/** The index of the connected input that gives an image or a latent its size, or -1. @param {Node} node */
function sizedInput(node) {
    const found = ["LATENT", "IMAGE"].map((type) =>
        node.inputs.findIndex((input) => input.type === type && input.link != null),
    );
    return found.find((index) => index >= 0) ?? -1;
}

/**
 * The size in pixels of the image at a node's input, or undefined where it is known only when the prompt runs.
 *
 * @param {Node} node
 */
export function sourceSize(node) {
    return sizeFrom(originOf(node, node.inputs.findIndex((input) => input.type === "IMAGE")));
}

/**
 * About the size that CLEAR High-Res Upscale makes; of an unknown image, as if it were a square.
 *
 * @param {Node} node
 * @returns {[number, number] | undefined}
 */
function upscaledSize(node) {
    const source = sourceSize(node);
    const [width, height] = source ?? [1, 1];
    const [megapixels, longSide, scale] = ["target_megapixels", "long_side", "scale"].map((name) =>
        Number(valueOf(node, name)),
    );
    const times = {
        megapixels: Math.sqrt((megapixels * 1e6) / (width * height)),
        "long side": longSide / Math.max(width, height),
        scale: source ? scale : NaN,
    }[String(valueOf(node, "size_by"))];
    return times ? [Math.round((width * times) / 16) * 16, Math.round((height * times) / 16) * 16] : undefined;
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
    const kind = node.comfyClass ?? "";
    if (kind === "LoadImage") return fileSize(node);
    if (!KEEP_SIZE.has(kind) && !(kind in RESIZE)) return undefined;
    const size = sizeFrom(originOf(node, sizedInput(node)), depth - 1);
    return size && RESIZE[kind] ? RESIZE[kind](node, size) : size;
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
    const file = originOf(apply, apply.inputs.findIndex((input) => input.name === "weights"))?.node;
    return file ? { ...settings, weights: weightsName(apply) } : settings;
}

/**
 * The file at a node's input `weights`; undefined if there is none. Weights that Distill CLEAR Weights has yet to make are
 * named as a released file of the same variant, by which the server knows what they will be.
 *
 * @param {Node} node
 */
export function weightsName(node) {
    const origin = originOf(node, node.inputs.findIndex((input) => input.name === "weights"))?.node;
    if (origin?.comfyClass !== "CLEARDistill") return origin && valueOf(origin, "weights_name");
    const [radius, factor] = [valueOf(origin, "radius"), Number(valueOf(origin, "down_factor"))];
    return `clear_local_${radius}${factor > 1 ? `_down_${factor}` : ""}`;
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
export function originOf(node, index) {
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
export function targetsOf(graph, ids) {
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

/** The id of the node on the page: 20.0.0.5 is what node 20 has expanded into. @param {string} id */
export function ownerOf(id) {
    return id.replace(/\..*$/, "");
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
    const path = ownerOf(id).split(":");
    for (const part of path.slice(0, -1)) {
        const holder = graph?.getNodeById(part);
        graph = holder?.isSubgraphNode() ? /** @type {any} */ (holder.subgraph) : undefined;
    }
    return graph !== undefined && graph === node.graph && String(node.id) === path.at(-1);
}
