// Panel of CLEAR 4K / 8K: that of Apply CLEAR Attention, and a button that turns the node into those it stands for.

import { request } from "./api.mjs";
import { html, message } from "./dom.mjs";
import { changeGraph, imageSize, valueOf } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { measured } from "./measured.mjs";
import { windowPanel } from "./window_panel.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").PresetPayload} PresetPayload */

const GAP = 6; // to the part of the panel before it
const APART = 40; // pixels between two nodes
const SIDE = 1024; // pixels, where the graph does not tell the size

/**
 * @param {Node} node
 * @returns {import("./types").Panel}
 */
export function presetPanel(node) {
    const panel = windowPanel(node);
    const problem = html("div");
    const title = t("Replaces this node with the nodes it stands for, with the same settings.");
    const button = html("button", { type: "button", title }, t("Expand into nodes"));
    button.addEventListener("click", () => void expand());
    const actions = html("div", { class: "clear-actions" }, button, problem);
    panel.element.append(actions);
    const height = measured(node, actions);

    async function expand() {
        const [width, height] = imageSize(node) ?? [SIDE, SIDE];
        /** @type {PresetPayload | import("./types").Refused} */
        const payload = await request("preset", {
            preset: valueOf(node, "preset"),
            devices: valueOf(node, "devices"),
            width,
            height,
        });
        if (payload.refused !== undefined) problem.replaceChildren(message(payload.refused));
        else changeGraph(() => replace(node, payload.nodes));
    }

    return { ...panel, height: () => panel.height() + height() + GAP };
}

/**
 * Put nodes in the place of one: the model goes through them in their order, the first gives the weights.
 *
 * @param {Node} node
 * @param {PresetPayload["nodes"]} wanted
 */
function replace(node, wanted) {
    const graph = node.graph;
    if (!graph) return;
    let [x, y] = node.pos;
    const [loader, ...models] = wanted.map(({ type, widgets }) => {
        const made = /** @type {Node} */ (LiteGraph.createNode(type));
        graph.add(made);
        for (const widget of made.widgets ?? []) {
            if (widget.name in widgets) widget.value = widgets[widget.name];
        }
        made.pos = [x, y];
        x += made.size[0] + APART;
        return made;
    });
    const [first, last] = [models[0], models[models.length - 1]];
    loader.connect(0, first, "weights");
    models.slice(1).forEach((next, index) => models[index].connect(0, next, "model"));
    takeInput(node, first);
    takeTargets(node, last);
    graph.remove(node);
}

/** Connect what one node gets as its model to another. @param {Node} node @param {Node} other */
function takeInput(node, other) {
    /** @type {any} */
    const graph = node.graph;
    const model = (/** @type {Node} */ of) => of.inputs.findIndex(({ name }) => name === "model");
    const link = graph.getLink(node.inputs[model(node)]?.link ?? -1);
    if (link?.originIsIoNode) graph.inputs[link.origin_slot].connect(other.inputs[model(other)], other);
    else if (link) graph.getNodeById(link.origin_id)?.connect(link.origin_slot, other, model(other));
}

/** Connect what one node's output leads to with that of another. @param {Node} node @param {Node} other */
function takeTargets(node, other) {
    /** @type {any} */
    const graph = node.graph;
    for (const id of [...(node.outputs[0].links ?? [])]) {
        const link = graph.getLink(id);
        if (link?.targetIsIoNode) graph.outputs[link.target_slot].connect(other.outputs[0], other);
        else if (link) other.connect(0, graph.getNodeById(link.target_id), link.target_slot);
    }
}
