// Panel of Apply CLEAR Attention: the attention window over the image, drawn to scale, and what it costs.

import { latestRequest } from "./api.mjs";
import { figures, fromLink, grouped, html, message, svg } from "./dom.mjs";
import { estimate } from "./estimate.mjs";
import { clearSettings } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { COLUMNS, PADDING, measured } from "./measured.mjs";
import { sourceNote } from "./source_note.mjs";
import { sizeSelect } from "./size_select.mjs";

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function windowPanel(node) {
    const picture = html("div", { class: "clear-picture" });
    const numbers = html("div");
    const size = sizeSelect(node, () => refresh());
    const facts = html("div", { class: "clear-facts" }, numbers, size.element);
    const right = html("div", { class: "clear-numbers" }, facts);
    const source = sourceNote(node);
    const run = estimate(node);
    const factsHeight = measured(node, facts);
    const columns = html("div", { class: "clear-columns" }, picture, right);
    const element = html("div", { class: "clear-panel" }, columns, source.element, run.element);

    /** @type {ReturnType<typeof latestRequest<import("./types").WindowPayload>>} */
    const requestWindow = latestRequest("window", (payload) => {
        const shown = payload.refused === undefined;
        picture.replaceChildren(...(shown ? [drawing(payload)] : []));
        numbers.replaceChildren(shown ? figures(rows(payload)) : message(payload.refused));
    });

    function refresh() {
        const settings = clearSettings(node) ?? {};
        const linked = Object.keys(settings).find((name) => settings[name] === undefined);
        const [width, height] = size.update();
        if (linked) {
            picture.replaceChildren();
            numbers.replaceChildren(message(fromLink(linked)));
        } else {
            void requestWindow({ width, height, ...settings });
        }
        source.refresh();
        run.refresh([width, height]);
    }

    return {
        element,
        height: () => 2 * PADDING + Math.max(COLUMNS, factsHeight()) + source.height() + run.height(),
        refresh,
        runEnded: () => run.refresh(size.update(), true), // memory is free again
    };
}

/**
 * @param {import("./types").WindowPayload} payload
 * @returns {[string, string, string?, string?][]}
 */
function rows(payload) {
    const { keys, dense_keys, speedup } = payload;
    const share = 100 * payload.share;
    /** @type {[string, string, string?, string?][]} */
    const found = [
        ...chosen(payload),
        [t("tokens each patch sees"), grouped(keys), t("of $all", { all: grouped(dense_keys) })],
        [
            t("attention cost"),
            `${share < 10 ? share.toFixed(1) : share.toFixed(0)} %`,
            share > 50 ? t("of full attention; pays off from 2048 px") : t("of full attention"),
        ],
    ];
    if (typeof speedup !== "string") {
        const source = t("One layer's attention, $backend on $device", speedup);
        found.push([
            t("speed-up here"),
            `${speedup.times.toFixed(1)} x`,
            t("at $pixels px", { pixels: speedup.pixels }),
            source,
        ]);
    }
    return found;
}

/**
 * What the node chose itself, and what is not as the weights were trained.
 *
 * @param {import("./types").WindowPayload} payload
 * @returns {[string, string, string?][]}
 */
function chosen({ radius, auto_radius, with_weights, trained, ntk_factor, proportional, by_size, large }) {
    const shown = auto_radius ? t("auto ($radius)", { radius }) : String(radius);
    let warning = with_weights ? "" : t("untrained: no weights");
    if (trained !== null && trained !== radius) warning = t("untrained: the weights have $radius", { radius: trained });
    /** @type {[string, string, string?][]} */
    const found = [[t("radius"), shown, warning]];
    const ntk = by_size ? t("auto ($factor)", { factor: ntk_factor }) : String(ntk_factor);
    if (ntk_factor !== 1 || proportional) {
        found.push([t("NTK factor"), ntk, proportional ? t("proportional attention") : ""]);
    } else if (large) {
        found.push([t("NTK factor"), ntk, t("0 suits this size")]);
    }
    return found;
}

/** @param {import("./types").WindowPayload} payload */
function drawing(payload) {
    const [height, width] = payload.grid;
    const [y, x] = [Math.floor(height / 2), Math.floor(width / 2)];
    const label = description(payload);
    return svg(
        "svg",
        { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMin", role: "img", "aria-label": label },
        svg("title", {}, label),
        svg("rect", { class: "clear-image", width, height }),
        payload.cells ? svg("rect", { class: "clear-coarse", width, height }) : "",
        svg("path", { class: "clear-grid", d: gridLines(width, height) }),
        svg("path", { class: "clear-window", d: windowPath(payload, x, y) }),
        svg("rect", { class: "clear-query", x, y, width: 1, height: 1 }),
    );
}

/** The drawing in words. @param {import("./types").WindowPayload} payload */
function description({ grid: [height, width], token_pixels, radius, half_widths, cells }) {
    const window = t("Attention window: radius $radius, $across pixels across; image: $size pixels, $tokens tokens.", {
        radius,
        across: (2 * half_widths.length - 1) * token_pixels,
        size: `${width * token_pixels} x ${height * token_pixels}`,
        tokens: `${width} x ${height}`,
    });
    if (!cells) return window;
    return `${window} ${t("Global context: $cells pooled tokens.", { cells: `${cells[1]} x ${cells[0]}` })}`;
}

/**
 * The tokens in the window of the token at x, y, clipped at the image's border: one row after the other, a pair of rows
 * for each distance.
 *
 * @param {import("./types").WindowPayload} payload
 * @param {number} x
 * @param {number} y
 */
function windowPath({ grid: [height, width], half_widths }, x, y) {
    const rows = half_widths.flatMap((half, dy) => {
        const [left, right] = [Math.max(0, x - half), Math.min(width, x + half + 1)];
        const inside = [...new Set([y - dy, y + dy])].filter((row) => row >= 0 && row < height);
        return inside.map((row) => `M${left} ${row}H${right}v1H${left}z`);
    });
    return rows.join("");
}

/**
 * A line every power of two tokens, about sixteen lines across.
 *
 * @param {number} width
 * @param {number} height
 */
function gridLines(width, height) {
    const step = 2 ** Math.ceil(Math.log2(Math.max(width, height, 16) / 16));
    let path = "";
    for (let x = step; x < width; x += step) path += `M${x} 0v${height}`;
    for (let y = step; y < height; y += step) path += `M0 ${y}h${width}`;
    return path;
}
