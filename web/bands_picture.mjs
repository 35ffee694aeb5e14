// On CLEAR Multi-GPU and its sampler: the bands over the image, the devices that share them, and how far each is.

import { devicePicker } from "./devices.mjs";
import { figures, fromLink, html, said, svg } from "./dom.mjs";
import { grow } from "./dress.mjs";
import { clearSettings, valueOf } from "./graph.mjs";
import { ask, asker } from "./server.mjs";
import { sizeChoice } from "./window_picture.mjs";
import { say } from "./words.mjs";

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function bandsPanel(node) {
    const picture = html("div", { class: "clear-picture" });
    const numbers = html("div");
    const picker = devicePicker(node);
    const size = sizeChoice(node, () => refresh());
    const right = html("div", { class: "clear-numbers" }, numbers, size.element);
    const columns = html("div", { class: "clear-columns" }, picture, right);
    const element = html("div", { class: "clear-panel" }, columns, picker.element);

    /** @type {import("./types").Device[]} */
    let machine = [];
    /** @type {import("./types").BandFacts | undefined} */
    let plan;
    /** @type {import("./types").BandProgress | undefined} */
    let running;
    let shown = 0; // the band whose halo is drawn

    /** @type {ReturnType<typeof asker<import("./types").BandFacts>>} */
    const askPlan = asker("bands", (facts) => {
        plan = facts.refused === undefined ? facts : undefined;
        if (plan) shown = Math.floor(plan.bands.length / 2);
        show(facts.refused);
    });

    function refresh(again = false) {
        const settings = clearSettings(node);
        const [devices, bands] = [valueOf(node, "devices"), valueOf(node, "bands")];
        /** @type {Record<string, unknown>} */
        const values = { ...settings, devices, bands };
        const linked = Object.keys(values).find((name) => values[name] === undefined);
        const [width, height] = size.update();
        picker.update(machine, plan?.peaks ?? {});
        if (!settings || linked) {
            plan = undefined;
            show(linked ? fromLink(linked) : say("Connect Apply CLEAR Attention before it."));
        } else {
            void askPlan({ width, height, ...values }, again);
        }
    }

    /** @param {string} [problem] */
    function show(problem) {
        const drawn = running ?? plan;
        picture.replaceChildren(...(drawn ? [drawing(drawn)] : []));
        numbers.replaceChildren(running ? progress(running) : plan ? figures(rows(plan)) : said(problem ?? ""));
        size.element.hidden = running !== undefined;
        picker.update(machine, plan?.peaks ?? {});
    }

    /** @param {import("./types").BandFacts | import("./types").BandProgress} facts */
    function drawing(facts) {
        const [height, width] = facts.grid;
        const [start, stop] = facts.bands[Math.min(shown, facts.bands.length - 1)];
        const halo = "halo" in facts ? facts.halo ?? height : 0;
        const label = say("$bands bands over an image of $tokens tokens.", {
            bands: facts.bands.length,
            tokens: `${width} x ${height}`,
        });
        const stripes = facts.bands.map(([first, last, lane], band) => {
            const share = "done" in facts ? facts.done[band] / facts.blocks : 1;
            const place = { y: first, width, height: last - first };
            const stripe = svg(
                "g",
                { class: `clear-lane${lane % 6}` },
                svg("rect", { ...place, class: band % 2 ? "clear-odd" : "clear-even" }),
                running ? svg("rect", { ...place, class: "clear-done", width: share * width }) : "",
                svg(
                    "title",
                    {},
                    say("Band $band: rows $first to $last, lane $lane", {
                        band: band + 1,
                        first,
                        last: last - 1,
                        lane: lane + 1,
                    }),
                ),
            );
            stripe.addEventListener("pointerenter", () => {
                if (shown !== band && !running) {
                    shown = band;
                    show();
                }
            });
            return stripe;
        });
        const [top, bottom] = [Math.max(0, start - halo), Math.min(height, stop + halo)];
        return svg(
            "svg",
            { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMin", role: "img", "aria-label": label },
            svg("rect", { class: "clear-image", width, height }),
            ...stripes,
            ...(running
                ? []
                : [
                      svg("rect", { class: "clear-halo", y: top, width, height: bottom - top }),
                      svg("rect", { class: "clear-band", y: start, width, height: stop - start }),
                  ]),
        );
    }

    async function askMachine() {
        /** @type {import("./types").Device[] | import("./types").Refused} */
        const found = await ask("devices");
        machine = Array.isArray(found) ? found : [];
        refresh(true);
        grow(node);
    }

    void askMachine();
    return {
        element,
        height: () => 168 + 22 * picker.element.children.length,
        refresh: () => refresh(),
        runEnded() {
            running = undefined;
            void askMachine();
        },
        moved(now) {
            running = now;
            show();
        },
    };
}

/** @param {import("./types").BandProgress} now */
function progress(now) {
    const share = now.done.reduce((sum, blocks) => sum + blocks, 0) / (now.blocks * now.done.length);
    const percent = Math.round(100 * share);
    const bar = html("progress", { "aria-label": say("this step"), max: 100, value: percent });
    return html("div", {}, figures([[say("bands"), String(now.bands.length)], [say("this step"), `${percent} %`]]), bar);
}

/**
 * @param {import("./types").BandFacts} facts
 * @returns {[string, string, string?, string?][]}
 */
function rows(facts) {
    const heights = facts.bands.map(([start, stop]) => stop - start);
    const [least, most] = [Math.min(...heights), Math.max(...heights)];
    return [
        [say("bands"), String(facts.bands.length), facts.chosen ? say("by the memory free now") : ""],
        [
            say("rows in each"),
            least === most ? String(least) : say("$least to $most", { least, most }),
            say("of $all", { all: facts.grid[0] }),
        ],
        facts.halo === null
            ? [say("halo"), say("all rows"), "", say("Some layers or steps are dense: every band needs all the others.")]
            : [
                  say("halo"),
                  String(facts.halo),
                  say("rows on either side"),
                  say("Rows of keys and values that neighbours hand over."),
              ],
    ];
}
