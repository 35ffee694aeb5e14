// ComfyUI's own modules, which the page has and this folder has not.

/** A global of the page: its library for graphs. */
declare const LiteGraph: { createNode(type: string): unknown };

declare module "*/scripts/app.js" {
    export const app: import("@comfyorg/comfyui-frontend-types").ComfyApp;
}

declare module "*/scripts/api.js" {
    export const api: import("@comfyorg/comfyui-frontend-types").ComfyApi;
}
