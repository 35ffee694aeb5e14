// Changes of the graph that keep the links of a node, also those to and from a subgraph's own inputs and outputs.

/** @typedef {import("./types").Node} Node */

/**
 * A new node in a graph, with values of its widgets.
 *
 * @param {NonNullable<Node["graph"]>} graph
 * @param {string} type
 * @param {[x: number, y: number]} pos
 * @param {Record<string, string | number>} values by the name of the widget
 * @returns {Node}
 */
export function addNode(graph, type, pos, values) {
    const made = /** @type {Node} */ (LiteGraph.createNode(type));
    made.pos = pos;
    graph.add(made);
    for (const widget of made.widgets ?? []) {
        if (widget.name in values) widget.value = values[widget.name];
    }
    return made;
}

/** Connect what one node gets as its model to another. @param {Node} node @param {Node} other */
export function copyModelInput(node, other) {
    /** @type {any} */
    const graph = node.graph;
    const model = (/** @type {Node} */ of) => of.inputs.findIndex(({ name }) => name === "model");
    const link = graph.getLink(node.inputs[model(node)]?.link ?? -1);
    if (link?.originIsIoNode) graph.inputs[link.origin_slot].connect(other.inputs[model(other)], other);
    else if (link) graph.getNodeById(link.origin_id)?.connect(link.origin_slot, other, model(other), link.parentId);
}

/** Connect all that the first output of one node leads to with that of another. @param {Node} node @param {Node} other */
export function moveTargets(node, other) {
    /** @type {any} */
    const graph = node.graph;
    for (const link of [...(node.outputs[0].links ?? [])].map((id) => graph.getLink(id))) {
        if (link.targetIsIoNode) graph.outputs[link.target_slot].connect(other.outputs[0], /** @type {any} */ (other));
        else other.connect(0, graph.getNodeById(link.target_id), link.target_slot, link.parentId);
    }
}
