// The catalog: models that are known to run, for the page's list and as WebLLM's `prebuiltAppConfig`.

import models from './models.json';
import { HUB, type AppConfig } from './model';

/** A repository in MLC format. */
export interface CatalogEntry {
  id: string;
  name: string;
  family: string;
  license: string;
  /** Size of the weights. */
  bytes: number;
  cacheBytesPerToken: number;
  /** Largest context, in tokens. */
  context: number;
  /** True if this project quantized the model. */
  ours?: boolean;
}

/** Bytes for activations and for the browser itself, estimated. */
const SCRATCH_BYTES = 150e6;

/** Models that are known to run. */
export const MODELS: readonly CatalogEntry[] = models;

/** GPU memory of a model with a context of `context` tokens, in bytes. */
export function memoryNeeded(model: CatalogEntry, context = model.context): number {
  return model.bytes + model.cacheBytesPerToken * Math.min(model.context, context) + SCRATCH_BYTES;
}

/** The catalog in WebLLM's form. The engine also runs models that are not in it. */
export const prebuiltAppConfig: AppConfig = {
  model_list: MODELS.map((model) => ({
    model: `${HUB}/${model.id}`,
    model_id: model.id.split('/').at(-1)!,
    vram_required_MB: memoryNeeded(model) / 1e6,
    overrides: { context_window_size: model.context },
  })),
};
