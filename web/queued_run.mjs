// Queues prompts and follows them to their end: outputs, steps and errors.

import { api } from "../../scripts/api.js";

/** @typedef {import("./types").Prompt} Prompt */
/** @typedef {import("./types").ServerImage} ServerImage */

/** Steps of one node without a break: the first and the last, and when they were reported, in milliseconds. */
/** @typedef {{ node: string, first: number, last: number, started: number, ended: number, of: number }} Steps */

/**
 * A run so far. status: undefined until it ends. images: by the id of the node that shows them, in order of arrival.
 *
 * @typedef {object} Run
 * @property {boolean} started
 * @property {"success" | "error" | "interrupted" | "removed" | undefined} status
 * @property {string} error in words; "" for none
 * @property {Steps[]} steps
 * @property {Map<string, ServerImage[]>} images
 */

/**
 * Follow all runs of this page from now on. A run's first messages may come before the server's answer to its request.
 *
 * @param {() => void} changed called after every message
 */
export function followRuns(changed) {
    /** @type {Map<string, Run>} */
    const runs = new Map();
    const listening = new AbortController();
    const events = /** @type {EventTarget} */ (api);

    /** @param {string} id @returns {Run} */
    function of(id) {
        let run = runs.get(id);
        if (!run) {
            run = { started: false, status: undefined, error: "", steps: [], images: new Map() };
            runs.set(id, run);
        }
        return run;
    }

    /** @param {string} kind @param {(run: Run, detail: any) => void} take */
    function on(kind, take) {
        const listener = (/** @type {Event} */ event) => {
            const { detail } = /** @type {CustomEvent} */ (event);
            if (!detail?.prompt_id) return;
            take(of(detail.prompt_id), detail);
            changed();
        };
        events.addEventListener(kind, listener, { signal: listening.signal });
    }

    on("execution_start", (run) => (run.started = true));
    on("progress", (run, { node, value, max }) => addStep(run.steps, String(node), value, max));
    on("executed", (run, { node, display_node, output }) => {
        const images = (output?.images ?? []).filter((/** @type {ServerImage} */ image) => image.filename);
        if (images.length) run.images.set(String(display_node ?? node), images);
    });
    on("execution_success", (run) => (run.status = "success"));
    on("execution_interrupted", (run) => (run.status = "interrupted"));
    on("execution_error", (run, detail) => {
        run.status = "error";
        run.error = `${detail.node_type}: ${String(detail.exception_message ?? detail.exception_type).trim()}`;
    });
    // A prompt that is deleted while it waits sends no message.
    events.addEventListener("status", () => void findRemoved(), { signal: listening.signal });

    async function findRemoved() {
        const waiting = [...runs].filter(([, run]) => !run.started && !run.status);
        if (!waiting.length) return;
        const queue = JSON.stringify(await api.getQueue());
        for (const [id, run] of waiting) {
            if (queue.includes(id) || run.started || run.status) continue;
            const kept = await (await api.fetchApi(`/history/${id}`)).json();
            if (kept[id] || run.started || run.status) continue; // its messages are on their way
            run.status = "removed";
            changed();
        }
    }

    return { of, stop: () => listening.abort() };
}

/** @param {Steps[]} all @param {string} node @param {number} value @param {number} max */
function addStep(all, node, value, max) {
    const now = performance.now();
    const last = all.at(-1);
    if (last?.node === node && last.of === max && value > last.last) {
        [last.last, last.ended] = [value, now];
    } else {
        all.push({ node, first: value, last: value, started: now, ended: now, of: max });
    }
}

/**
 * Queue a prompt. Throws Error, in the server's words, when it is refused.
 *
 * @param {Prompt} prompt
 * @param {any} workflow saved into the images
 * @returns {Promise<string>} its id
 */
export async function queue(prompt, workflow) {
    /** @type {any} */
    let answer;
    try {
        answer = await api.queuePrompt(0, { output: /** @type {any} */ (prompt), workflow });
    } catch (refused) {
        answer = /** @type {any} */ (refused)?.response;
        if (!answer) throw refused;
    }
    const nodes = /** @type {any[]} */ (Object.values(answer?.node_errors ?? {}));
    const reasons = nodes.flatMap((node) =>
        node.errors.map((/** @type {any} */ one) => `${node.class_type}: ${one.message}: ${one.details}`),
    );
    if (answer?.prompt_id && !reasons.length) return answer.prompt_id;
    if (answer?.prompt_id) await api.deleteItem("queue", answer.prompt_id); // it would run in part
    throw new Error(reasons.join("\n") || String(answer?.error?.message ?? answer?.error ?? "no answer"));
}
