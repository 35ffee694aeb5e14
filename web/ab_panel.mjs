// The button "Compare with full attention" on a panel, and what came of it: both images under a slider, with times.

import { compare, comparisonOf } from "./ab_run.mjs";
import { imageAddress } from "./api.mjs";
import { html } from "./dom.mjs";
import { t } from "./i18n.mjs";
import { imageSlider } from "./image_slider.mjs";
import { GAP, measured } from "./measured.mjs";
import { growToFit } from "./node_panel.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").Compared} Compared */
/** @typedef {import("./types").ComparedRun} ComparedRun */

const BAR = 28;
const SLIDER = 280;

/**
 * A panel with the button, for a MODEL -> MODEL node whose input is called `model`.
 *
 * @param {Node} node
 * @param {import("./types").Panel} panel
 * @returns {import("./types").Panel}
 */
export function withFullAttentionRun(node, panel) {
    const button = html("button", { type: "button" });
    const status = html("p", { class: "clear-note", role: "status" });
    const slider = imageSlider();
    const section = html("div", { class: "clear-ab" }, button, slider.element, status);
    panel.element.append(section);
    let shown = "";
    const height = measured(node, status);

    button.addEventListener("click", () => {
        const { own } = comparisonOf(node);
        if (own) own.cancel();
        else void compare(node);
        refresh();
    });

    function refresh() {
        const { own, busy, result } = comparisonOf(node);
        button.textContent = own ? t("Cancel the comparison") : t("Compare with full attention");
        button.disabled = busy && !own;
        button.title = t("Runs this workflow twice with the same seeds: without this node, then with it.");
        const lines = own ? [own.progress] : result ? described(result) : [];
        const text = lines.join("\n");
        if (text !== status.textContent) status.textContent = text;
        status.hidden = !text;
        const images = own ? undefined : result;
        const wanted = JSON.stringify(images ?? null);
        if (wanted === shown) return;
        shown = wanted;
        slider.show(images ? pairs(images.runs) : [], [name(0, images), name(1, images)]);
        section.classList.toggle("clear-ab-images", !slider.element.hidden);
        growToFit(node);
    }

    return {
        ...panel,
        height: () =>
            panel.height() +
            BAR +
            (slider.element.hidden ? 0 : SLIDER + GAP) +
            (status.hidden ? 0 : height() + GAP),
        refresh() {
            panel.refresh();
            refresh();
        },
    };
}

/** @param {ComparedRun[]} runs */
function pairs(runs) {
    const [before, after] = runs.map(({ images }) => images.map(imageAddress));
    const count = Math.max(before?.length ?? 0, after?.length ?? 0);
    return Array.from({ length: count }, (_, i) => ({ before: before?.[i] ?? "", after: after?.[i] ?? "" }));
}

/** @param {number} number of the run @param {Compared} [result] */
function name(number, result) {
    const run = result?.runs[number];
    const called = number ? t("CLEAR") : t("full attention");
    return run?.steps ? t("$name, $time s", { name: called, time: seconds(run) }) : called;
}

/** @param {ComparedRun} run */
function seconds({ milliseconds }) {
    return (milliseconds / 1000).toFixed(milliseconds < 10_000 ? 2 : 1);
}

/** Errors in words, and what the times are. @param {Compared} result */
function described({ error, runs }) {
    if (error) return [error];
    const lines = runs.flatMap((run, number) => (run.error ? [`${name(number)}: ${run.error}`] : []));
    const [full, clear] = runs;
    if (lines.length) return lines;
    if (!full.steps || full.steps !== clear.steps) return [t("Not timed: that takes two steps or more.")];
    const times = (full.milliseconds / clear.milliseconds).toFixed(2);
    return [t("Full attention takes $times times as long to sample. Timed from the first step's end to the last's.", { times })];
}
