// An A/B run: the same prompt and seeds with a node bypassed and with it. One at a time.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { computedAgain, modelUsers, reached, withBypassed } from "./bypassed_prompt.mjs";
import { isNode, ownerOf } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { followRuns, queue } from "./queued_run.mjs";
import { sessionStore } from "./session_store.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").Compared} Compared */
/** @typedef {import("./types").ComparedRun} ComparedRun */
/** @typedef {import("./queued_run.mjs").Run} Run */

/** By the id of the node in the prompt. */
const results = /** @type {ReturnType<typeof sessionStore<Compared>>} */ (sessionStore("ClearAttention.abRuns"));

/** The comparison that runs. @type {{ id: string, progress: string, cancel: () => void } | undefined} */
let running;

/** @type {(id: string) => void} */
let changed = () => {};

/** @param {(id: string) => void} callback gets the id of the node whose comparison has changed */
export function onComparisonChanged(callback) {
    changed = callback;
}

/** What is known of a node's comparison. @param {Node} node */
export function comparisonOf(node) {
    const all = Object.entries(results.of(app.graph.id));
    return {
        result: all.find(([id]) => isNode(node, id))?.[1],
        /** Set while it runs. */
        own: running && isNode(node, running.id) ? running : undefined,
        /** Whether another node's runs. */
        busy: running !== undefined,
    };
}

/**
 * Queue both prompts and keep what comes of them. Errors of a run become part of the result; the other run goes on.
 *
 * @param {Node} node MODEL -> MODEL, its input called `model`
 */
export async function compare(node) {
    if (running) return;
    const workflow = app.graph.id;
    const cancelled = new AbortController();
    running = { id: "", progress: t("Preparing"), cancel: () => cancelled.abort() };
    let id = "";
    try {
        const { output, workflow: saved } = await app.graphToPrompt();
        const prompt = /** @type {import("./types").Prompt} */ (/** @type {unknown} */ (output));
        const ids = Object.keys(prompt).filter((key) => isNode(node, key)); // several, for a subgraph used twice
        id = ids[0] ?? String(node.id);
        running.id = id;
        changed(id);
        const found = ids.length
            ? await runBoth(prompt, ids, saved, cancelled.signal)
            : refused(t("This node does not run: it is bypassed or muted."));
        results.put(workflow, id, found);
    } catch (error) {
        results.put(workflow, id, refused(reason(error)));
    } finally {
        running = undefined;
        changed(id);
    }
}

/** @param {string} error @returns {Compared} */
function refused(error) {
    return { error, runs: [] };
}

/** @param {unknown} error */
function reason(error) {
    return error instanceof Error ? error.message : String(error);
}

/**
 * @param {import("./types").Prompt} prompt
 * @param {string[]} ids
 * @param {unknown} saved the workflow
 * @param {AbortSignal} cancelled
 * @returns {Promise<Compared>}
 */
async function runBoth(prompt, ids, saved, cancelled) {
    if (ids.some((key) => !Array.isArray(prompt[key].inputs.model))) return refused(t("Connect a model to this node."));
    const users = modelUsers(prompt, ids);
    const mark = Date.now();
    // Full attention first: where both load the model, it is in neither time.
    const prompts = [withBypassed(prompt, ids), prompt].map((one) => computedAgain(one, users, mark));
    /** Called when a message has come. */
    let wake = () => {};
    const follower = followRuns(() => wake());
    /** @type {ComparedRun[]} */
    const runs = [];
    try {
        /** @type {(string | Error)[]} */
        const queued = [];
        for (const one of prompts) {
            queued.push(await queue(one, saved).catch((error) => new Error(reason(error))));
        }
        const cancel = () => {
            for (const key of queued) if (typeof key === "string") void stop(key, follower.of(key));
            wake();
        };
        cancelled.addEventListener("abort", cancel);
        if (cancelled.aborted) cancel();
        for (const [number, key] of queued.entries()) {
            const run = typeof key === "string" ? follower.of(key) : undefined;
            while (run && !run.status && !cancelled.aborted) {
                say(number, run, users);
                await new Promise((resolve) => (wake = () => resolve(undefined)));
            }
            runs.push(run ? summary(run, prompt, users) : { ...EMPTY, error: /** @type {Error} */ (key).message });
        }
    } finally {
        follower.stop();
    }
    return { error: "", runs };
}

/** @type {ComparedRun} */
const EMPTY = { error: "", milliseconds: 0, steps: 0, images: [] };

/** @param {string} id @param {Run} run */
async function stop(id, run) {
    if (run.status) return;
    if (run.started) await api.interrupt(id);
    else await api.deleteItem("queue", id);
}

/** Show how far it is. @param {number} number of the run @param {Run} run @param {Set<string>} users */
function say(number, run, users) {
    if (!running) return;
    const step = run.steps.filter(({ node }) => users.has(ownerOf(node))).at(-1);
    const values = { number: number + 1, name: number ? t("CLEAR") : t("full attention") };
    running.progress = step
        ? t("Run $number of two, $name: step $step of $all", { ...values, step: step.last, all: step.of })
        : run.started
          ? t("Run $number of two, $name", values)
          : t("Run $number of two waits in the queue", values);
    changed(running.id);
}

/**
 * @param {Run} run
 * @param {import("./types").Prompt} prompt
 * @param {Set<string>} users of the MODEL
 * @returns {ComparedRun}
 */
function summary(run, prompt, users) {
    const steps = run.steps.filter(({ node }) => users.has(ownerOf(node)));
    const after = reached(prompt, users);
    const shown = [...run.images].filter(([id]) => after.has(id)).at(-1);
    const stopped = run.status === "success" ? "" : run.error || t("cancelled");
    return {
        error: stopped || (shown ? "" : t("it showed no image: add Save Image or Preview Image")),
        milliseconds: steps.reduce((sum, { started, ended }) => sum + ended - started, 0),
        steps: steps.reduce((sum, { first, last }) => sum + last - first, 0),
        images: shown?.[1] ?? [],
    };
}
