// A prompt in the server's form as it would be with some nodes bypassed. The graph on the page is not touched.

/** @typedef {import("./types").Prompt} Prompt */

const MODEL_INPUTS = /^(model|guider)/;
// CLEAR in bands is refused without CLEAR; these then run uncut.
const BANDS_NODE = "CLEARMultiGPU";
const BANDS_SAMPLER = "CLEARTiledSampler";
const PLAIN_SAMPLER = "SamplerCustomAdvanced";
const BANDS_INPUTS = ["devices", "bands", "text_merge", "machines"];

/** @param {unknown} value @returns {value is [id: string, slot: number]} */
function isLink(value) {
    return Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && typeof value[1] === "number";
}

/**
 * The nodes that the outputs of some nodes reach, those not among them.
 *
 * @param {Prompt} prompt
 * @param {Iterable<string>} from ids
 * @param {RegExp} inputs names of the inputs to follow
 * @returns {Set<string>} ids
 */
export function reached(prompt, from, inputs = /^/) {
    const found = new Set(from);
    for (let before = 0; before !== found.size; ) {
        before = found.size;
        for (const [id, node] of Object.entries(prompt)) {
            const given = Object.entries(node.inputs).filter(([name]) => inputs.test(name));
            if (given.some(([, value]) => isLink(value) && found.has(value[0]))) found.add(id);
        }
    }
    for (const id of from) found.delete(id);
    return found;
}

/** The nodes that use the MODEL of some nodes. @param {Prompt} prompt @param {Iterable<string>} from ids */
export function modelUsers(prompt, from) {
    return reached(prompt, from, MODEL_INPUTS);
}

/**
 * A copy in which MODEL -> MODEL nodes are bypassed, and with them what needs CLEAR after them.
 *
 * @param {Prompt} prompt
 * @param {string[]} ids of the nodes, whose input is called `model`
 * @returns {Prompt}
 */
export function withBypassed(prompt, ids) {
    const copy = structuredClone(prompt);
    const removed = new Set(ids);
    for (const id of modelUsers(prompt, ids)) {
        const node = copy[id];
        if (node.class_type === BANDS_NODE) removed.add(id);
        if (node.class_type !== BANDS_SAMPLER) continue;
        node.class_type = PLAIN_SAMPLER;
        for (const name of BANDS_INPUTS) delete node.inputs[name];
    }
    for (const id of removed) delete copy[id];
    for (const node of Object.values(copy)) {
        for (const [name, value] of Object.entries(node.inputs)) {
            let link = value;
            while (isLink(link) && removed.has(link[0])) link = prompt[link[0]].inputs.model;
            node.inputs[name] = link;
        }
    }
    return copy;
}

/**
 * A copy that the server computes again from the users of a MODEL on, rather than taking what it has kept: those nodes
 * get an input that no node has, which the server ignores except in comparing prompts.
 *
 * @param {Prompt} prompt
 * @param {Iterable<string>} users ids; those that are not in the prompt are left out
 * @param {number} mark differs from run to run
 * @returns {Prompt}
 */
export function computedAgain(prompt, users, mark) {
    const copy = structuredClone(prompt);
    for (const id of users) if (copy[id]) copy[id].inputs.clear_run = mark;
    return copy;
}
