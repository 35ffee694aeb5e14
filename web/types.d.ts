import type { ComfyApp, ComfyExtension, DOMWidget, DOMWidgetOptions } from "@comfyorg/comfyui-frontend-types";

export type Graph = ComfyApp["graph"];

export type Node = Parameters<NonNullable<ComfyExtension["nodeCreated"]>>[0];

/** A node with what the host adds to it beyond its published types. */
export type FullNode = Node & {
    imgs?: HTMLImageElement[];
    addDOMWidget(
        name: string,
        type: string,
        element: HTMLElement,
        options: DOMWidgetOptions<string> & { serialize: boolean },
    ): DOMWidget<HTMLElement, string>;
};
export type Widget = NonNullable<Node["widgets"]>[number];

/** Where a link comes from: a node's output, or the value of a widget that is promoted to a subgraph's node. */
export type Origin = { node: Node; value?: undefined } | { node?: undefined; value: unknown };

/** What this pack shows below the widgets of a node. */
export interface Panel {
    element: HTMLElement;
    /** The least height in pixels, at zoom 1. */
    height(): number;
    /** Whether that is also the most: it leaves the rest of the node to the node's own picture. */
    compact?: boolean;
    /** The graph has changed: show its present state. */
    refresh(): void;
    /** Whether a text of a run is about what the node shows now. */
    concerns?(text: string): boolean;
    /** A run has ended: memory is free again, files may have been downloaded. */
    runEnded?(): void;
    /** A sampling step has progressed. */
    progressed?(progress: BandProgress): void;
    /** Machines have joined or left, or rows were dealt anew. */
    machinesChanged?(): void;
    /** An upscale has started, or progressed. */
    upscaled?(event: UpscaleEvent): void;
    /** The download of a weights file has progressed, begun or ended. */
    downloadChanged?(state: DownloadState): void;
}

/** A temporary image of the server, as its /view takes it. */
export interface ServerImage {
    filename: string;
    subfolder: string;
    type: string;
}

/** Two images of Compare Images; nodes/insight/slider_images.py. */
export interface ComparedPair {
    a: ServerImage;
    b: ServerImage;
    size: [width: number, height: number];
    shown: [width: number, height: number];
    /** Pairs in all, of which the first have been sent. */
    batch: number;
}

/** The picture of CLEAR Attention Map; nodes/insight/map_picture.py. */
export interface MapPicture extends ServerImage {
    size: [width: number, height: number];
    maps: { name: string; place: [left: number, top: number, width: number, height: number] }[];
    grid: [rows: number, columns: number];
    query: [row: number, column: number];
}

/** What a node's run has made, under the keys of this pack. */
export interface RunOutput {
    clear_compare?: ComparedPair[];
    clear_map?: MapPicture[];
}

/** A prompt in the server's form. */
export type Prompt = Record<string, { class_type: string; inputs: Record<string, unknown> } & Record<string, unknown>>;

/** One run of an A/B run. error: "" for none. steps: those that were timed. */
export interface ComparedRun {
    error: string;
    milliseconds: number;
    steps: number;
    images: ServerImage[];
}

/** An A/B run: with full attention, then with CLEAR. error: why there are no runs. */
export interface Compared {
    error: string;
    runs: ComparedRun[];
}

/** Two images of an image slider, by address; "" for none. */
export interface SliderPair {
    before: string;
    after: string;
}

/** Answers of the server: nodes/host/page/payloads.py documents them. */
export interface Refused {
    refused: string;
}

export interface WindowPayload {
    refused?: undefined;
    grid: [height: number, width: number];
    token_pixels: number;
    radius: number;
    down_factor: number;
    half_widths: number[];
    keys: number;
    dense_keys: number;
    cells: [height: number, width: number] | null;
    share: number;
    auto_radius: boolean;
    with_weights: boolean;
    trained: number | null;
    ntk_factor: number;
    proportional: boolean;
    by_size: boolean;
    large: boolean;
    speedup: { times: number; pixels: number; backend: string; device: string } | string;
}

export interface PresetPayload {
    refused?: undefined;
    nodes: { type: string; widgets: Record<string, string | number> }[];
}

export type Band = [start: number, stop: number, lane: number];

export interface BandsPayload {
    refused?: undefined;
    grid: [height: number, width: number];
    bands: Band[];
    halo: number | null;
    lanes: string[];
    peaks: Record<string, number>;
    missing: string[];
    chosen: boolean;
}

/** Sent while a forward runs in bands; nodes/host/bands/progress.py. */
export interface BandProgress {
    node: string;
    grid: [height: number, width: number];
    bands: Band[];
    blocks: number;
    done: number[];
    /** By lane: the name of the other machine that has it, "" for this one; empty where all are this one's. */
    machines: string[];
}

/** nodes/host/page/workers.py */
export interface WorkersPayload {
    refused?: undefined;
    listening: boolean;
    workers: { name: string; cards: string[]; link: number | null; rows: number; of: number; problem: string }[];
}

/** nodes/host/page/estimate.py */
export interface EstimatePayload {
    refused?: undefined;
    backend: { name: string; refusal: string } | null;
    seconds: {
        step: number;
        all: number | null;
        steps: number;
        source: string;
        beyond: boolean;
        own: boolean;
        untimed: boolean;
    } | null;
    bands: number;
    memory: {
        device: string;
        weights: number;
        step: number;
        need: number;
        free: number;
        total: number;
        missing: number;
        offloaded: boolean;
    };
    ram: { need: number; free: number; missing: boolean } | null;
    disk: { need: number; free: number } | null;
    fix: { kind: "bands" | "fp8" | "fp8 and bands" | "none"; bands?: number } | null;
}

export interface MachineDevice {
    name: string;
    title: string;
    free: number;
    total: number;
}

export interface DevicesPayload {
    refused?: undefined;
    machine: MachineDevice[];
    auto: string[];
    entries: { text: string; device: string }[];
}

export interface WeightsFile {
    name: string;
    here: boolean;
    size: string;
    radius: number | null;
    down_factor: number | null;
    licence: string | null;
    link: string | null;
}

export interface UpscaleStage {
    size: [width: number, height: number];
    bands: number;
    device: string;
    peak: number;
    free: number;
    vae: { way: "whole" | "strips" | "tiles"; need: number; room: number };
}

/** nodes/host/page/upscale.py. */
export interface UpscalePayload {
    refused?: undefined;
    source: [width: number, height: number];
    stages: UpscaleStage[];
}

/** nodes/insight/upscale_run.py; the device's memory beside it. Seconds are null where not known. */
export interface UpscaleProgress {
    plan?: undefined;
    node: string;
    image: number;
    images: number;
    sizes: [width: number, height: number][];
    stage: number;
    part: "encode" | "sample" | "decode";
    step: number;
    steps: number;
    fraction: number;
    stage_left: number | null;
    left: number | null;
    free: number;
    total: number;
}

/** Sent when an upscale starts, with its plan, and while it runs; nodes/host/upscale_progress.py. */
export type UpscaleEvent = { node: string; plan: UpscalePayload } | UpscaleProgress;
/** Of a released file; nodes/host/downloads.py documents it. */
export interface DownloadState {
    name: string;
    phase: "here" | "missing" | "running" | "failed";
    verified: boolean;
    done: string | null;
    size: string;
    share: number | null;
    speed: string | null;
    left: string | null;
    text: string;
    number: number;
}
