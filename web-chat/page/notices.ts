// Notices: an error or event, a hint for the user, and buttons for actions of the page.

import { EngineError } from '../engine';
import { byId, h } from './dom';

interface Action {
  label: string;
  run: () => void;
}

const TITLES: Partial<Record<EngineError['kind'], string>> = {
  NoWebGPU: 'This browser cannot run models here',
  NoGpu: 'No usable GPU was found',
  OutOfMemory: 'The GPU does not have enough memory',
  DeviceLost: 'The GPU was lost',
  Network: 'The network failed',
  NotFound: 'The model was not found',
  MissingFile: 'A file of the model is missing',
  DamagedFile: 'A file of the model is damaged',
  Storage: "The browser's storage failed",
  StorageFull: "The browser's storage is full",
  OtherTab: 'Another tab is using this model',
  NotRunnable: 'This model cannot be run',
  ContextFull: 'The conversation is too long',
  Stopped: 'The engine stopped',
};

/** Shows a notice. It replaces the one with the same key. */
export function notice(key: string, title: string, text: string, actions: Action[] = []): void {
  dismiss(key);
  const box = h('div', { class: 'notice', 'data-key': key });
  const close = () => box.remove();
  const buttons = actions.map(({ label, run }) => h('button', { type: 'button', click: () => { close(); run(); } }, label));
  buttons.push(h('button', { type: 'button', click: close }, 'Dismiss'));
  box.append(h('strong', {}, title), h('p', {}, ...withCode(text)), h('div', { class: 'row' }, ...buttons));
  byId('notices').append(box);
}

/** Splits text at backticks: the parts between them are code. */
function withCode(text: string): (HTMLElement | string)[] {
  return text.split('`').map((part, i) => (i % 2 ? h('code', {}, part) : part));
}

/** Shows an error. */
export function failure(key: string, thrown: unknown, actions: Action[] = []): EngineError {
  const error = EngineError.from(thrown);
  // Browsers' own messages end with a period.
  const message = error.message.replace(/\.+$/, '');
  const sentence = message.charAt(0).toUpperCase() + message.slice(1);
  const hint = error.hint ? ` What to do: ${error.hint}.` : '';
  notice(key, TITLES[error.kind] ?? 'An error occurred', `${sentence}.${hint}`, actions);
  return error;
}

export function dismiss(key: string): void {
  for (const box of byId('notices').querySelectorAll<HTMLElement>('[data-key]')) {
    if (box.dataset['key'] === key) box.remove();
  }
}
