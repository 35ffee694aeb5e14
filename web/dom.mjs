// Elements in one call.

import { t } from "./i18n.mjs";

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes and children; a null attribute is left out.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number | null>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function html(tag, attributes = {}, ...children) {
    return filled(document.createElement(tag), attributes, children);
}

/**
 * The same for SVG.
 *
 * @param {string} tag
 * @param {Record<string, string | number | null>} [attributes]
 * @param {(Node | string)[]} children
 */
export function svg(tag, attributes = {}, ...children) {
    return filled(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * @template {Element} Made
 * @param {Made} element
 * @param {Record<string, string | number | null>} attributes
 * @param {(Node | string)[]} children
 */
function filled(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (value !== null) element.setAttribute(name, String(value));
    }
    element.append(...children);
    return element;
}

/**
 * Figures under their names: a list that a screen reader reads out when it changes.
 *
 * @param {[name: string, value: string, rest?: string, title?: string][]} rows
 */
export function figures(rows) {
    const items = rows.flatMap(([name, value, rest = "", title = ""]) => [
        html("dt", {}, name),
        html("dd", { title: title || null }, html("b", {}, value), rest && ` ${rest}`),
    ]);
    return html("dl", { "aria-live": "polite" }, ...items);
}

/** A sentence that says why there is nothing else to show. @param {string} text */
export function message(text) {
    return html("p", { role: "status" }, text);
}

/** For a value that is known only when the prompt runs. @param {string} name */
export function fromLink(name) {
    return t("$name comes from a link: known when it runs.", { name });
}

/** @param {number} bytes */
export function gib(bytes) {
    const value = bytes / 2 ** 30;
    return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} GiB`;
}

/** @param {number} number */
export function grouped(number) {
    return number.toLocaleString("en");
}

/** A time in one or two units: 0.45 s, 45 s, 2 min 10 s, 1 h 5 min. @param {number} seconds */
export function duration(seconds) {
    if (seconds < 10) return t("$seconds s", { seconds: Number(seconds.toPrecision(2)) });
    const whole = Math.round(seconds);
    if (whole < 60) return t("$seconds s", { seconds: whole });
    if (whole < 3600) return t("$minutes min $seconds s", { minutes: Math.floor(whole / 60), seconds: whole % 60 });
    const minutes = Math.round(seconds / 60);
    return t("$hours h $minutes min", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
}
