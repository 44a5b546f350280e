// Models that are known to run: the list that the page shows, and the same in the form of WebLLM's `prebuiltAppConfig`.

import catalogue from './models.json';
import { HUB, type AppConfig } from './model';

/** A repository in MLC format. */
export interface Listed {
  id: string;
  name: string;
  family: string;
  licence: string;
  bytes: number;
  cacheBytesPerToken: number;
  context: number;
  /** Whether it was made by this project. */
  ours?: boolean;
}

/** Activations, and what the browser itself needs. */
const SCRATCH = 150e6;

/** Models that are known to run. */
export const MODELS: readonly Listed[] = catalogue;

/** Bytes of the GPU's memory that a model takes with room for so many tokens. */
export function memoryNeeded(model: Listed, context = model.context): number {
  return model.bytes + model.cacheBytesPerToken * Math.min(model.context, context) + SCRATCH;
}

/** The list by WebLLM's name and in its form. An app may choose from it; a model need not be in it. */
export const prebuiltAppConfig: AppConfig = {
  model_list: MODELS.map((model) => ({
    model: `${HUB}/${model.id}`,
    model_id: model.id.split('/').at(-1)!,
    vram_required_MB: memoryNeeded(model) / 1e6,
    overrides: { context_window_size: model.context },
  })),
};
