// On Apply CLEAR Attention: the window over the image, drawn to scale, and what it costs.

import { figures, fromLink, grouped, html, said, svg } from "./dom.mjs";
import { changeGraph, clearSettings, imageSize } from "./graph.mjs";
import { asker } from "./server.mjs";
import { say } from "./words.mjs";

const SIDES = [1024, 2048, 4096, 8192, 16384];
const TOKEN = 16; // pixels a side

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function windowPanel(node) {
    const picture = html("div", { class: "clear-picture" });
    const numbers = html("div");
    const size = sizeChoice(node, () => refresh());
    const right = html("div", { class: "clear-numbers" }, numbers, size.element);
    const element = html("div", { class: "clear-panel" }, html("div", { class: "clear-columns" }, picture, right));

    /** @type {ReturnType<typeof asker<import("./types").WindowFacts>>} */
    const ask = asker("window", (facts) => {
        const shown = facts.refused === undefined;
        picture.replaceChildren(...(shown ? [drawing(facts)] : []));
        numbers.replaceChildren(shown ? figures(rows(facts)) : said(facts.refused));
    });

    function refresh() {
        const settings = clearSettings(node) ?? {};
        const linked = Object.keys(settings).find((name) => settings[name] === undefined);
        const [width, height] = size.update();
        if (linked) {
            picture.replaceChildren();
            numbers.replaceChildren(said(fromLink(linked)));
        } else {
            void ask({ width, height, ...settings });
        }
    }

    return { element, height: () => 164, refresh };
}

/**
 * Which image the picture is about: the one found in the graph, or one that a person chooses. The choice is kept with
 * the node.
 *
 * @param {import("./types").Node} node
 * @param {() => void} changed
 */
export function sizeChoice(node, changed) {
    const select = html("select", { "aria-label": say("Image size") });
    select.addEventListener("change", () => {
        changeGraph(() => {
            node.properties.clear_image = Number(select.value);
        });
        changed();
    });
    return {
        element: select,
        /** The size in pixels. @returns {[width: number, height: number]} */
        update() {
            const found = imageSize(node);
            const chosen = Number(node.properties.clear_image) || (found ? 0 : SIDES[0]);
            const label = found ? say("$size (graph)", { size: found.join(" x ") }) : "";
            // An open list stays open while it is right.
            if (!select.length || label !== (select.options[0].value === "0" ? select.options[0].text : "")) {
                const options = SIDES.map((side) => html("option", { value: side }, `${side} x ${side}`));
                if (found) options.unshift(html("option", { value: 0 }, label));
                select.replaceChildren(...options);
            }
            select.value = String(chosen);
            return chosen || !found ? [chosen, chosen] : found;
        },
    };
}

/**
 * @param {import("./types").WindowFacts} facts
 * @returns {[string, string, string?, string?][]}
 */
function rows(facts) {
    const share = 100 * facts.share;
    const speed = facts.speedup;
    return [
        [say("keys per query"), grouped(facts.keys), say("of $all", { all: grouped(facts.dense_keys) })],
        [say("attention cost"), `${share < 10 ? share.toFixed(1) : share.toFixed(0)} %`, say("of dense")],
        typeof speed === "string"
            ? [say("speed-up here"), "–", say("not measured"), speed]
            : [
                  say("speed-up here"),
                  `${speed.times.toFixed(1)} x`,
                  say("at $pixels px", { pixels: speed.pixels }),
                  say("Of one layer's attention, by $backend on $device", {
                      backend: speed.backend,
                      device: speed.device,
                  }),
              ],
    ];
}

/** @param {import("./types").WindowFacts} facts */
function drawing(facts) {
    const [height, width] = facts.grid;
    const [y, x] = [Math.floor(height / 2), Math.floor(width / 2)];
    const across = 2 * facts.half_widths.length - 1;
    const window = say("The window: radius $radius, $across pixels across, in an image of $size pixels, $tokens tokens.", {
        radius: facts.radius,
        across: across * TOKEN,
        size: `${width * TOKEN} x ${height * TOKEN}`,
        tokens: `${width} x ${height}`,
    });
    const coarse = facts.cells
        ? say("A coarse view of the whole image: $cells cells.", { cells: `${facts.cells[1]} x ${facts.cells[0]}` })
        : "";
    const label = `${window} ${coarse}`.trim();
    const path = facts.half_widths.flatMap((half, dy) => {
        const row = `h${2 * half + 1}v1h${-2 * half - 1}z`;
        return [`M${x - half} ${y - dy}${row}`, dy ? `M${x - half} ${y + dy}${row}` : ""];
    });
    return svg(
        "svg",
        { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMin", role: "img", "aria-label": label },
        svg("title", {}, label),
        svg("rect", { class: "clear-image", width, height }),
        facts.cells ? svg("rect", { class: "clear-coarse", width, height }) : "",
        svg("path", { class: "clear-grid", d: gridLines(width, height) }),
        svg("path", { class: "clear-window", d: path.join("") }),
        svg("rect", { class: "clear-query", x, y, width: 1, height: 1 }),
    );
}

/**
 * Every so many tokens a line, about sixteen of them.
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
