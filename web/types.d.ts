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

/** What comes out at one end of a link: a node's output, or the value of a widget on the border of a subgraph. */
export type Origin = { node: Node; value?: undefined } | { node?: undefined; value: unknown };

/** The part of a node that this pack draws. */
export interface Panel {
    element: HTMLElement;
    /** Pixels that it needs at least, at zoom 1. */
    height(): number;
    /** The graph has changed: show what is so now. */
    refresh(): void;
    /** A run has ended: memory is free again, files may have come. */
    runEnded?(): void;
    /** A sampling step goes on. */
    moved?(progress: BandProgress): void;
}

/** Answers of the server; nodes/host/page_facts.py says what they mean. */
export interface Refused {
    refused: string;
}

export interface WindowFacts {
    refused?: undefined;
    grid: [height: number, width: number];
    radius: number;
    down_factor: number;
    half_widths: number[];
    keys: number;
    dense_keys: number;
    cells: [height: number, width: number] | null;
    share: number;
    speedup: { times: number; pixels: number; backend: string; device: string } | string;
}

export type Band = [start: number, stop: number, lane: number];

export interface BandFacts {
    refused?: undefined;
    grid: [height: number, width: number];
    bands: Band[];
    halo: number | null;
    lanes: string[];
    peaks: Record<string, number>;
    missing: string[];
    chosen: boolean;
}

export interface BandProgress {
    node: string;
    grid: [height: number, width: number];
    bands: Band[];
    blocks: number;
    done: number[];
}

export interface Device {
    name: string;
    title: string;
    free: number;
    total: number;
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
