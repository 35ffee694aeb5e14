// Panel of CLEAR High-Res Upscale: the stages before the run, and in it how far they are.

import { latestRequest } from "./api.mjs";
import { duration, fromLink, gib, html, message } from "./dom.mjs";
import { clearSettings, sourceSize, valueOf, weightsName } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { markInactive } from "./inactive_widgets.mjs";
import { growToFit } from "./node_panel.mjs";

/** @typedef {import("./types").UpscalePayload} UpscalePayload */
/** @typedef {import("./types").UpscaleProgress} UpscaleProgress */

/** Inputs that the server's route takes, by the same names. */
const INPUTS = "target_megapixels stages size_by long_side scale vae_tiling devices bands".split(" ");
/** The input that gives the size, by the value of `size_by`. @type {Record<string, string>} */
const SIZE_INPUTS = { megapixels: "target_megapixels", "long side": "long_side", scale: "scale" };

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function upscalePanel(node) {
    const title = html("p", { class: "clear-plan" });
    const table = html("div");
    const status = html("div");
    const element = html("div", { class: "clear-panel clear-upscale" }, title, table, status);

    /** @type {UpscalePayload | undefined} */
    let plan;
    /** @type {UpscaleProgress | undefined} */
    let running;
    let rows = 0;
    let asked = false; // whether the graph as it is now has a plan

    /** @type {ReturnType<typeof latestRequest<UpscalePayload>>} */
    const requestPlan = latestRequest("upscale", (payload) => {
        if (running || !asked) return; // the run knows better
        plan = payload.refused === undefined ? payload : undefined;
        show(payload.refused);
    });

    /** Of the three inputs of the size, those that `size_by` does not name. @param {string} name */
    function isInactive(name) {
        const counts = SIZE_INPUTS[String(valueOf(node, "size_by"))];
        return counts && Object.values(SIZE_INPUTS).includes(name) ? name !== counts : undefined;
    }

    function refresh(again = false) {
        markInactive(node, isInactive);
        if (running) return;
        const source = sourceSize(node);
        const values = Object.fromEntries(INPUTS.map((name) => [name, valueOf(node, name)]));
        const settings = clearSettings(node) ?? { weights: weightsName(node) ?? "" };
        const linked = [...Object.entries(values), ...Object.entries(settings)].find(([, value]) => value === undefined);
        if (source && !linked) {
            const [width, height] = source;
            void requestPlan({ width, height, ...settings, ...values }, again || !asked);
            asked = true;
            return;
        }
        asked = false;
        plan = undefined;
        show(linked ? fromLink(linked[0]) : t("The image's size is known when it runs."));
    }

    /** @param {string} [problem] */
    function show(problem) {
        markInactive(node, isInactive);
        title.textContent = plan ? chain(plan) : "";
        title.hidden = !plan;
        table.replaceChildren(...(plan ? [planTable(plan, running)] : []));
        status.replaceChildren(...(running ? progressLines(running) : problem ? [message(problem)] : []));
        const now = (plan ? plan.stages.length + 2 : 0) + status.querySelectorAll("p").length;
        if (now === rows) return;
        rows = now;
        growToFit(node);
    }

    return {
        element,
        compact: true, // the rest is the picture of the last stage
        height: () => 22 + 20 * rows + (running ? 22 : 0),
        refresh: () => refresh(),
        runEnded() {
            if (!running) return;
            running = undefined;
            if (sourceSize(node)) refresh(true); // memory is free again
            else show();
        },
        upscaled(event) {
            if (event.plan) plan = event.plan;
            else running = event;
            show();
        },
    };
}

/** @param {[width: number, height: number]} size */
function sizeText([width, height]) {
    return `${width} x ${height}`;
}

/** @param {UpscalePayload} plan */
function chain({ source, stages }) {
    const sizes = [source, ...stages.map((stage) => stage.size)].map(sizeText).join(" → ");
    return stages.length === 1
        ? t("$sizes, one stage", { sizes })
        : t("$sizes, $count stages", { sizes, count: stages.length });
}

/**
 * @param {UpscalePayload} plan
 * @param {UpscaleProgress | undefined} running
 */
function planTable({ stages }, running) {
    const heads = [t("stage"), t("bands"), t("memory"), "VAE"];
    const head = html("tr", {}, ...heads.map((text) => html("th", { scope: "col" }, text)));
    const body = stages.map(({ size, bands, peak, free, device, vae }, index) => {
        const tight = peak > free;
        const memory = html(
            "td",
            {
                class: tight ? "clear-too-much" : null,
                title: t("Of one step, beside the weights; $free free on $device.", { free: gib(free), device }),
            },
            gib(peak),
        );
        const values = { need: gib(vae.need), free: gib(vae.room) };
        const how = html(
            "td",
            { title: t("$need for the whole image, $free free.", values) },
            { whole: t("plain"), strips: t("strips"), tiles: t("tiled") }[vae.way],
        );
        const current = running?.stage === index + 1;
        return html(
            "tr",
            { class: current ? "clear-current" : null, "aria-current": current ? "step" : null },
            html("th", { scope: "row" }, `${index + 1}. ${sizeText(size)}`),
            html("td", {}, String(bands)),
            memory,
            how,
        );
    });
    return html("table", {}, head, ...body);
}

/** Time that is left, as roughly as it is known. @param {number} seconds */
function timeLeft(seconds) {
    return duration(Math.max(1, Math.round(seconds)));
}

/** @param {UpscaleProgress} running */
function progressLines(running) {
    const { image, images, stage, sizes, part, step, steps, stage_left, left, free, total, fraction } = running;
    const where = { stage, stages: sizes.length, image, images };
    const at =
        images > 1
            ? t("Image $image of $images, stage $stage of $stages", where)
            : t("Stage $stage of $stages", where);
    const sample = steps ? t("step $step of $steps", { step, steps }) : t("sampling begins");
    const doing = { encode: t("VAE encode"), decode: t("VAE decode"), sample };
    const times = [];
    if (stage_left !== null) times.push(t("$time left in this stage", { time: timeLeft(stage_left) }));
    if (left !== null) times.push(t("$time in all", { time: timeLeft(left) }));
    const percent = Math.round(100 * fraction);
    return [
        html("p", {}, html("b", {}, `${at}, ${doing[part]}`)),
        html("p", {}, times.join(", ") || t("time left: after the first part")),
        html("p", {}, t("memory: $used of $total used", { used: gib(total - free), total: gib(total) })),
        html("progress", { "aria-label": t("the whole upscale"), max: 100, value: percent }),
    ];
}
