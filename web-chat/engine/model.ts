// ModelRef: from what a user names (a repository of the hub, an address, a folder that was dropped) to where its files are.

import { EngineError } from './errors';

export interface ModelRef {
  /** What the model is kept under, and called. */
  id: string;
  /** The address that a file's name is appended to; none for a local folder. */
  base?: string;
  /** The files of a local folder. */
  files?: File[];
}

export const HUB = 'https://huggingface.co';

/** A model of an app's own list, in WebLLM's form. What else such a record has, this engine has no use for. */
export interface ModelRecord {
  /** The address of a repository, or of a folder that is laid out as one. */
  model: string;
  /** The name that the app uses. */
  model_id: string;
  overrides?: { context_window_size?: number; [setting: string]: unknown };
  vram_required_MB?: number;
  [other: string]: unknown;
}

/** An app's own list. */
export interface AppConfig {
  model_list: ModelRecord[];
  [other: string]: unknown;
}

/** Who owns a repository that is named without its owner, as WebLLM's lists name them. */
const OWNER = 'mlc-ai';

/**
 * A repository `owner/name` or `owner/name@revision` (of MLC's own `name-MLC` will do), or the address of a folder or of a
 * repository's page. An address of this site may be relative; it begins with `/` or `.` then.
 */
export function modelRef(name: string): ModelRef {
  const text = name.trim().replace(/\/+$/, '');
  if (/^[\w.-]+-MLC$/.test(text)) return modelRef(`${OWNER}/${text}`);
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

/** Where a record's files are, by WebLLM's rule: in the revision that the address has, else in `resolve/main`. */
export function recordRef({ model }: ModelRecord): ModelRef {
  const address = model.trim().replace(/\/+$/, '');
  const hasRevision = /\/resolve\/./.test(address) || address.startsWith(`${HUB}/`);
  return modelRef(hasRevision ? address : `${address}/resolve/main`);
}

/** The model in a folder of files, by the folder's name where the files do not tell it. */
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
    'name a repository of the hub that holds an MLC folder, such as mlc-ai/SmolLM2-360M-Instruct-q4f16_1-MLC',
  );
}
