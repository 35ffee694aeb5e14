// The words on the pack's panels, in the language of the page: English is here, the others are in locales/*/main.json.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

/** @type {Record<string, Record<string, string>>} */
const translations = { en: {} };

/** The page's language, such as en or ja. @returns {string} */
function language() {
    return app.extensionManager.setting.get("Comfy.Locale") ?? "en";
}

/**
 * Have this language's words from the server, once; English needs none. A language that nobody translated is shown in
 * English. The page loads its workflow anew when a person changes the language, so nothing here listens for that.
 *
 * @param {() => void} come called when there is something else to say than before
 */
export async function loadWords(come) {
    const wanted = language();
    if (wanted in translations) return;
    translations[wanted] = {};
    try {
        const all = await (await api.fetchApi("/i18n")).json();
        translations[wanted] = all[wanted]?.clearPanels ?? {};
        come();
    } catch {
        delete translations[wanted]; // another panel may have more luck
    }
}

/**
 * A text in the page's language, its $names replaced by values.
 *
 * @param {string} text in English
 * @param {Record<string, string | number>} [values]
 */
export function say(text, values = {}) {
    const translated = translations[language()]?.[text] ?? text;
    return translated.replace(/\$([a-z]+)/g, (sign, name) => String(values[name] ?? sign));
}
