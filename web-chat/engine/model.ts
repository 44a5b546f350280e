// ModelRef: the location of a model's files, from a repository of the hub, an address, or a dropped folder.

import { EngineError } from './errors';

export interface ModelRef {
  /** Name of the model in the storage and on the page. */
  id: string;
  /** Address to which a file's name is appended. Missing for a local folder. */
  base?: string;
  /** The files of a local folder. */
  files?: File[];
}

export const HUB = 'https://huggingface.co';

/** A model in an app's list, in WebLLM's form. Other fields are ignored. */
export interface ModelRecord {
  /** The address of a repository, or of a folder with the same layout. */
  model: string;
  /** The name that the app uses. */
  model_id: string;
  overrides?: { context_window_size?: number; [setting: string]: unknown };
  vram_required_MB?: number;
  [other: string]: unknown;
}

/** An app's list of models. */
export interface AppConfig {
  model_list: ModelRecord[];
  [other: string]: unknown;
}

/** Owner of repositories that WebLLM's lists name without an owner. */
const DEFAULT_OWNER = 'mlc-ai';

/**
 * The model that `name` refers to: a repository (`owner/name`, `owner/name@revision`, or `name-MLC` for those of mlc-ai), or
 * the address of a folder or of a repository's page. An address on this site may be relative, beginning with `/` or `.`.
 */
export function modelRef(name: string): ModelRef {
  const text = name.trim().replace(/\/+$/, '');
  if (/^[\w.-]+-MLC$/.test(text)) return modelRef(`${DEFAULT_OWNER}/${text}`);
  const repository = /^([\w.-]+\/[\w.-]+)(?:@([\w./-]+))?$/.exec(text);
  if (repository) {
    const [, repo, revision] = repository;
    return { id: text, base: `${HUB}/${repo}/resolve/${revision ?? 'main'}/` };
  }
  let url: URL;
  try {
    url = /^\.{0,2}\//.test(text) ? new URL(text, globalThis.location?.href) : new URL(text);
  } catch {
    throw badName(name);
  }
  const isLocal = ['localhost', '127.0.0.1', '[::1]'].includes(url.hostname);
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && (isLocal || url.origin === globalThis.location?.origin))) {
    throw badName(name);
  }
  url.search = url.hash = '';
  const page = /^\/([\w.-]+\/[\w.-]+)(?:\/tree\/([\w./-]+))?$/.exec(url.pathname);
  if (url.origin === HUB && page) return modelRef(page[2] ? `${page[1]}@${page[2]}` : page[1]!);
  return { id: url.href, base: `${url.href}/` };
}

/** The model of a record, by WebLLM's rule: the revision in the address, else `resolve/main`. */
export function recordRef({ model }: ModelRecord): ModelRef {
  const address = model.trim().replace(/\/+$/, '');
  const hasRevision = /\/resolve\/./.test(address) || address.startsWith(`${HUB}/`);
  return modelRef(hasRevision ? address : `${address}/resolve/main`);
}

/** The model in a local folder. `name` is the folder's name, if the files do not have it in their paths. */
export function localRef(files: File[], name?: string): ModelRef {
  if (!files.some((file) => file.name === 'mlc-chat-config.json')) {
    throw new EngineError(
      'MissingFile',
      'this folder has no `mlc-chat-config.json`',
      'drop the folder of a model in MLC format, as `weight-convert convert` writes it',
    );
  }
  const folder = name ?? files[0]?.webkitRelativePath.split('/')[0];
  return { id: `local:${folder || 'folder'}`, files };
}

function badName(name: string): EngineError {
  return new EngineError(
    'BadParameter',
    `"${name}" is neither a repository (owner/name) nor an https address`,
    'enter a repository with an MLC folder, for example mlc-ai/SmolLM2-360M-Instruct-q4f16_1-MLC',
  );
}
