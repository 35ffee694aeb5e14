// Panel of CLEAR 4K / 8K: that of Apply CLEAR Attention, and a button that turns the node into those it stands for.

import { app } from "../../scripts/app.js";
import { request } from "./api.mjs";
import { fromLink, html, message } from "./dom.mjs";
import { changeGraph, imageSize, valueOf } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { GAP, measured } from "./measured.mjs";
import { addNode, copyModelInput, moveTargets } from "./rewire.mjs";
import { windowPanel } from "./window_panel.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").PresetPayload} PresetPayload */

const APART = 40; // pixels between two nodes
const BELOW = 100; // the lowest node, with room for titles
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
        const values = { preset: valueOf(node, "preset"), devices: valueOf(node, "devices") };
        const linked = Object.entries(values).find(([, value]) => value === undefined);
        /** @type {PresetPayload | import("./types").Refused} */
        const payload = linked
            ? { refused: fromLink(linked[0]) }
            : await request("preset", { ...values, width, height });
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
    let [x] = node.pos;
    const y = Math.max(...graph.nodes.map(({ pos, size }) => pos[1] + size[1])) + BELOW; // they would cover others
    const [loader, ...models] = wanted.map(({ type, widgets }) => {
        const made = addNode(graph, type, [x, y], widgets);
        x += made.size[0] + APART;
        return made;
    });
    const [first, last] = [models[0], models[models.length - 1]];
    loader.connect(0, first, "weights");
    models.slice(1).forEach((next, index) => models[index].connect(0, next, "model"));
    copyModelInput(node, first);
    moveTargets(node, last);
    graph.remove(node);
    app.canvas.centerOnNode(first);
}
