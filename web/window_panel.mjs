// Panel of Apply CLEAR Attention: the attention window over the image, drawn to scale, and what it costs.

import { latestRequest } from "./api.mjs";
import { figures, fromLink, grouped, html, message, svg } from "./dom.mjs";
import { clearSettings } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { sizeSelect } from "./size_select.mjs";

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function windowPanel(node) {
    const picture = html("div", { class: "clear-picture" });
    const numbers = html("div");
    const size = sizeSelect(node, () => refresh());
    const right = html("div", { class: "clear-numbers" }, numbers, size.element);
    const element = html("div", { class: "clear-panel" }, html("div", { class: "clear-columns" }, picture, right));

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
    }

    return { element, height: () => 164, refresh };
}

/**
 * @param {import("./types").WindowPayload} payload
 * @returns {[string, string, string?, string?][]}
 */
function rows(payload) {
    const { keys, dense_keys, speedup } = payload;
    const share = 100 * payload.share;
    const [speed, at, source] =
        typeof speedup === "string"
            ? ["–", t("not measured"), speedup]
            : [
                  `${speedup.times.toFixed(1)} x`,
                  t("at $pixels px", { pixels: speedup.pixels }),
                  t("One layer's attention, $backend on $device", speedup),
              ];
    return [
        [t("keys per query"), grouped(keys), t("of $all", { all: grouped(dense_keys) })],
        [t("attention cost"), `${share < 10 ? share.toFixed(1) : share.toFixed(0)} %`, t("of dense")],
        [t("speed-up here"), speed, at, source],
    ];
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
        svg("path", { class: "clear-window", d: windowPath(payload.half_widths, x, y) }),
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
 * The tokens in the window of the token at x, y: one row after the other, a pair of rows for each distance.
 *
 * @param {number[]} halfWidths by distance in rows
 * @param {number} x
 * @param {number} y
 */
function windowPath(halfWidths, x, y) {
    const rows = halfWidths.flatMap((half, dy) => {
        const row = `h${2 * half + 1}v1h${-2 * half - 1}z`;
        return [`M${x - half} ${y - dy}${row}`, dy ? `M${x - half} ${y + dy}${row}` : ""];
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
