// What a run would do, from the graph around a node: the model's file, the steps, and the node that cuts the forward
// into bands; and the change that puts CLEAR Multi-GPU behind Apply CLEAR Attention.

import { changeGraph, originOf, targetsOf, valueOf } from "./graph.mjs";
import { addNode, moveTargets } from "./rewire.mjs";

/** @typedef {import("./types").Node} Node */

/** Nodes whose forwards run in bands. */
const BANDED = new Set(["CLEARMultiGPU", "CLEARPreset", "CLEARTiledSampler"]);

/** Loaders by the widget that names the file, and the folder of models in which it lies. */
const LOADERS = Object.entries({ unet_name: "diffusion_models", ckpt_name: "checkpoints" });

/**
 * The file that the loader upstream loads, for the server; empty where there is no loader that is known.
 *
 * @param {Node} node
 * @returns {Record<string, unknown>}
 */
export function modelFile(node, depth = 50) {
    for (const [widget, folder] of LOADERS) {
        const model = valueOf(node, widget);
        if (typeof model === "string") return { folder, model, dtype: valueOf(node, "weight_dtype") ?? "" };
    }
    const index = node.inputs.findIndex((input) => ["MODEL", "GUIDER"].includes(String(input.type)));
    const before = depth ? originOf(node, index)?.node : undefined;
    return before ? modelFile(before, depth - 1) : {};
}

/**
 * The node itself and those downstream, up to the samplers, nearest first.
 *
 * @param {Node} node
 * @returns {Node[]}
 */
function following(node) {
    const found = new Set([node]);
    for (const next of found) {
        for (const output of next.graph && !isSampler(next) ? next.outputs : []) {
            if (["MODEL", "GUIDER"].includes(String(output.type))) {
                for (const target of targetsOf(/** @type {any} */ (next.graph), output.links ?? [])) found.add(target);
            }
        }
    }
    return [...found];
}

/** @param {Node} node */
function isSampler(node) {
    return node.inputs.some((input) => input.type === "LATENT");
}

/** The node that cuts this run into bands, if there is one. @param {Node} node @returns {Node | undefined} */
export function bandedNode(node) {
    return following(node).find((other) => BANDED.has(other.comfyClass ?? ""));
}

/** Whether the number of bands can be set on a node. @param {Node} node */
export function hasBands(node) {
    return node.widgets?.some(({ name }) => name === "bands") ?? false;
}

/** The steps of the sampler; 0 for unknown. @param {Node} node */
export function steps(node) {
    for (const sampler of following(node).filter(isSampler)) {
        const index = sampler.inputs.findIndex((input) => input.type === "SIGMAS");
        const scheduler = index >= 0 ? originOf(sampler, index)?.node : sampler;
        const found = scheduler && Number(valueOf(scheduler, "steps"));
        if (found) return found;
    }
    return 0;
}

/**
 * Put CLEAR Multi-GPU into all links that leave a node's model output: one undo step.
 *
 * @param {Node} node
 * @param {number} bands
 */
export function insertMultiGpu(node, bands) {
    const { graph } = node;
    if (!graph) return;
    changeGraph(() => {
        const added = addNode(graph, "CLEARMultiGPU", [node.pos[0], node.pos[1] + node.size[1] + 60], {});
        moveTargets(node, added);
        node.connect(0, added, "model");
        setBands(added, bands);
    });
}

/** @param {Node} node @param {number} bands */
export function changeBands(node, bands) {
    changeGraph(() => setBands(node, bands));
}

/** @param {Node} node @param {number} bands */
function setBands(node, bands) {
    const widget = node.widgets?.find((other) => other.name === "bands");
    if (!widget) return;
    widget.value = bands;
    widget.callback?.(bands);
}
