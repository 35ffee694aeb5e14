// Panel of CLEAR Multi-GPU and its sampler: the bands over the image, the devices that share them, and the progress.

import { latestRequest } from "./api.mjs";
import { devicePicker } from "./device_picker.mjs";
import { estimate } from "./estimate.mjs";
import { figures, fromLink, html, message, svg } from "./dom.mjs";
import { clearSettings, valueOf } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { COLUMNS, GAP, PADDING, measured } from "./measured.mjs";
import { modelFile } from "./run_plan.mjs";
import { sizeSelect } from "./size_select.mjs";
import { workersList } from "./workers_list.mjs";

/** @typedef {import("./types").BandsPayload} BandsPayload */
/** @typedef {import("./types").BandProgress} BandProgress */

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function bandsPanel(node) {
    const picture = html("div", { class: "clear-picture" });
    const numbers = html("div");
    const picker = devicePicker(node, () => refresh());
    const size = sizeSelect(node, () => refresh());
    const facts = html("div", { class: "clear-facts" }, numbers, size.element);
    const right = html("div", { class: "clear-numbers" }, facts);
    const columns = html("div", { class: "clear-columns" }, picture, right);
    const run = estimate(node);
    const workers = workersList(node);
    const [factsHeight, pickerHeight] = [measured(node, facts), measured(node, picker.element)];
    const workersHeight = measured(node, workers.element);
    const element = html("div", { class: "clear-panel" }, columns, run.element, picker.element, workers.element);

    /** @type {BandsPayload | undefined} */
    let plan;
    /** @type {BandProgress | undefined} */
    let running;
    let selected = 0; // the band whose halo is drawn

    /** @type {ReturnType<typeof latestRequest<BandsPayload>>} */
    const requestPlan = latestRequest("bands", (payload) => {
        plan = payload.refused === undefined ? payload : undefined;
        if (plan) selected = Math.floor(plan.bands.length / 2);
        show(payload.refused);
    });

    function refresh(again = false) {
        const settings = clearSettings(node);
        const [devices, bands] = [valueOf(node, "devices"), valueOf(node, "bands")];
        /** @type {Record<string, unknown>} */
        const values = { ...settings, devices, bands };
        const linked = Object.keys(values).find((name) => values[name] === undefined);
        const [width, height] = size.update();
        picker.refresh(again);
        workers.refresh(again);
        run.refresh([width, height], again);
        if (!settings || linked) {
            plan = undefined;
            show(linked ? fromLink(linked) : t("Connect Apply CLEAR Attention before this node."));
        } else {
            void requestPlan({ width, height, ...values, ...modelFile(node) }, again);
        }
    }

    /** @param {string} [problem] */
    function show(problem) {
        if (running) {
            picture.replaceChildren(progressDrawing(running));
            numbers.replaceChildren(progressFigures(running));
        } else {
            picture.replaceChildren(...(plan ? [planDrawing(plan, selected, select)] : []));
            numbers.replaceChildren(plan ? figures(rows(plan)) : message(problem ?? ""));
        }
        size.element.hidden = running !== undefined;
        picker.showPeaks(plan?.peaks ?? {});
    }

    /** @param {number} band */
    function select(band) {
        if (selected === band) return;
        selected = band;
        show();
    }

    return {
        element,
        height() {
            const devices = pickerHeight() + GAP + (workersHeight() ? workersHeight() + GAP : 0);
            return 2 * PADDING + Math.max(COLUMNS, factsHeight()) + run.height() + devices;
        },
        refresh: () => refresh(),
        runEnded() {
            running = undefined;
            workers.progressed(undefined);
            refresh(true); // memory is free again
        },
        progressed(progress) {
            running = progress;
            workers.progressed(progress);
            show();
        },
        machinesChanged: () => workers.refresh(true),
    };
}

/**
 * @param {BandsPayload} plan
 * @param {number} selected the band whose halo is drawn
 * @param {(band: number) => void} select
 */
function planDrawing(plan, selected, select) {
    const [height, width] = plan.grid;
    const [start, stop] = plan.bands[Math.min(selected, plan.bands.length - 1)];
    const halo = plan.halo ?? height;
    const [top, bottom] = [Math.max(0, start - halo), Math.min(height, stop + halo)];
    const stripes = plan.bands.map((_, band) => {
        const drawn = stripe(plan, band);
        drawn.addEventListener("pointerenter", () => select(band));
        return drawn;
    });
    return drawing(
        plan,
        ...stripes,
        svg("rect", { class: "clear-halo", y: top, width, height: bottom - top }),
        svg("rect", { class: "clear-band", y: start, width, height: stop - start }),
    );
}

/** @param {BandProgress} progress */
function progressDrawing(progress) {
    const { grid, bands, done, blocks } = progress;
    const stripes = bands.map(([first, last], band) => {
        const share = done[band] / blocks;
        const bar = { y: first, width: share * grid[1], height: last - first };
        return stripe(progress, band, svg("rect", { ...bar, class: "clear-done" }));
    });
    return drawing(progress, ...stripes);
}

/**
 * @param {Pick<BandsPayload, "grid" | "bands">} plan
 * @param {Element[]} children
 */
function drawing({ grid: [height, width], bands }, ...children) {
    const values = { bands: bands.length, tokens: `${width} x ${height}` };
    const label = t("$bands bands over an image of $tokens tokens.", values);
    return svg(
        "svg",
        { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMin", role: "img", "aria-label": label },
        svg("rect", { class: "clear-image", width, height }),
        ...children,
    );
}

/**
 * One band of the drawing, in the colour of its lane.
 *
 * @param {Pick<BandsPayload, "grid" | "bands">} plan
 * @param {number} band
 * @param {Element[]} children
 */
function stripe({ grid, bands }, band, ...children) {
    const [first, last, lane] = bands[band];
    const rows = { y: first, width: grid[1], height: last - first };
    const values = { band: band + 1, first, last: last - 1, lane: lane + 1 };
    return svg(
        "g",
        { class: `clear-lane${lane % 6}` },
        svg("rect", { ...rows, class: band % 2 ? "clear-odd" : "clear-even" }),
        ...children,
        svg("title", {}, t("Band $band: rows $first to $last, lane $lane", values)),
    );
}

/** @param {BandProgress} progress */
function progressFigures({ bands, done, blocks }) {
    const share = done.reduce((sum, finished) => sum + finished, 0) / (blocks * done.length);
    const percent = Math.round(100 * share);
    const bar = html("progress", { "aria-label": t("this step"), max: 100, value: percent });
    return html("div", {}, figures([[t("bands"), String(bands.length)], [t("this step"), `${percent} %`]]), bar);
}

/**
 * @param {BandsPayload} plan
 * @returns {[string, string, string?, string?][]}
 */
function rows(plan) {
    const heights = plan.bands.map(([start, stop]) => stop - start);
    const [least, most] = [Math.min(...heights), Math.max(...heights)];
    return [
        [t("bands"), String(plan.bands.length), plan.chosen ? t("chosen by free memory") : ""],
        [
            t("rows per band"),
            least === most ? String(least) : t("$least to $most", { least, most }),
            t("of $all", { all: plan.grid[0] }),
        ],
        plan.halo === null
            ? [t("rows shared with neighbours"), t("all rows"), "", t("Some layers or steps use full attention: each band needs all others.")]
            : [t("rows shared with neighbours"), String(plan.halo), t("on either side"), t("Rows of keys and values from adjacent bands.")],
    ];
}
