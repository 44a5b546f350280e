// The chat panel: sends messages, shows the answer while it is generated, and offers Copy, Edit and Regenerate.

import { EngineError, type CompletionUsage, type Engine } from '../engine';
import { byId, h } from './dom';
import { rate } from './format';
import { newConversation, save, type Conversation, type StoredMessage } from './history';
import { markdown } from './markdown';
import { dismiss, failure, notice } from './notices';
import type { SettingsForm } from './settings';

export class ChatPanel {
  private conversation: Conversation = newConversation();
  private isReady = false;
  private isAnswering = false;
  /** Index of the message that is being edited. */
  private edited: number | undefined;
  private readonly log = byId('messages');
  private readonly text = byId<HTMLTextAreaElement>('composer-text');
  private readonly send = byId<HTMLButtonElement>('send');
  private readonly stop = byId<HTMLButtonElement>('stop');

  constructor(
    private readonly engine: Engine,
    private readonly settings: SettingsForm,
    private readonly onChange: (usage?: CompletionUsage) => void,
  ) {
    byId<HTMLFormElement>('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.submit();
    });
    this.text.addEventListener('keydown', (event) => {
      // An input method uses Enter to finish a character.
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    this.text.addEventListener('input', () => this.updateButtons());
    this.stop.addEventListener('click', () => void engine.interruptGenerate());
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && this.isAnswering) void engine.interruptGenerate();
    });
    byId('cancel').addEventListener('click', () => {
      this.text.value = '';
      this.edit(undefined);
    });
    byId('reset').addEventListener('click', () => void this.open(newConversation()));
    this.render();
  }

  get current(): Conversation {
    return this.conversation;
  }

  /** Enables the chat when a model is loaded, disables it when not. */
  setReady(isReady: boolean): void {
    this.isReady = isReady;
    this.text.placeholder = isReady ? 'Message (Enter sends, Shift+Enter starts a new line)' : 'Load a model to start';
    this.text.disabled = !isReady;
    this.updateButtons();
    this.render();
  }

  focus(): void {
    this.text.focus();
  }

  /** Shows another conversation. */
  async open(conversation: Conversation): Promise<void> {
    if (this.isAnswering) await this.engine.interruptGenerate();
    this.conversation = conversation;
    this.render();
    this.onChange();
    this.edit(undefined);
  }

  private submit(): void {
    const content = this.text.value.trim();
    if (!content || !this.isReady || this.isAnswering) return;
    this.text.value = '';
    const { messages } = this.conversation;
    if (this.edited !== undefined) messages.splice(this.edited);
    this.edit(undefined);
    if (messages.length === 0) this.conversation.title = content.slice(0, 60);
    messages.push({ role: 'user', content });
    void this.answer();
  }

  /** Generates the answer to the last message. */
  private async answer(isRetry = false): Promise<void> {
    const { conversation } = this;
    const { system, sampling } = this.settings.read();
    const request = conversation.messages.map(({ role, content }) => ({ role, content }));
    const reply: StoredMessage = { role: 'assistant', content: '' };
    conversation.messages.push(reply);
    this.isAnswering = true;
    if (!isRetry) dismiss('chat');
    this.render();
    this.announce('The answer starts.');
    const article = this.log.lastElementChild as HTMLElement;
    article.setAttribute('aria-busy', 'true');
    const body = article.querySelector<HTMLElement>('.body')!;
    const draw = () => {
      cancelAnimationFrame(frame);
      clearTimeout(timer);
      frame = timer = 0;
      const follows = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
      body.replaceChildren(markdown(reply.content));
      if (follows) this.log.scrollTop = this.log.scrollHeight;
    };
    // Draw once per frame. A busy GPU can delay frames by seconds, so a timer also draws.
    let frame = 0;
    let timer = 0;
    const drawSoon = () => {
      frame ||= requestAnimationFrame(draw);
      timer ||= window.setTimeout(draw, 250);
    };
    const stopDrawing = () => {
      cancelAnimationFrame(frame);
      clearTimeout(timer);
    };
    let used: CompletionUsage | undefined;
    let reason: string | undefined;
    try {
      const chunks = await this.engine.chat.completions.create({
        messages: system ? [{ role: 'system', content: system }, ...request] : request,
        ...sampling,
        stream: true,
        stream_options: { include_usage: true },
      });
      for await (const { choices: [choice], usage } of chunks) {
        reply.content += choice?.delta.content ?? '';
        reason = choice?.finish_reason ?? reason;
        used = usage ?? used;
        drawSoon();
      }
      if (used) reply.stats = stats(used, reason);
    } catch (thrown) {
      const error = EngineError.from(thrown);
      const isLost = error.kind === 'DeviceLost' || error.kind === 'Stopped';
      conversation.messages = conversation.messages.filter((message) => message !== reply || reply.content !== '');
      if (isLost && !isRetry) {
        // The engine loads the model again with the next request.
        conversation.messages = conversation.messages.filter((message) => message !== reply);
        notice('chat', error.kind === 'DeviceLost' ? 'The GPU was lost' : 'The engine stopped',
          `${error.message}. The model is being loaded again, and the answer restarts.`);
        stopDrawing();
        return await this.answer(true);
      }
      failure('chat', error, [{ label: 'Try again', run: () => void this.regenerate() }]);
    }
    stopDrawing();
    this.isAnswering = false;
    conversation.changed = Date.now();
    await save(conversation).catch((thrown: unknown) => failure('history', thrown));
    if (this.conversation === conversation) this.render();
    this.announce(reason === 'abort' ? 'Stopped.' : reply.content);
    this.onChange(used);
    this.focus();
  }

  private async regenerate(): Promise<void> {
    if (!this.isReady || this.isAnswering) return;
    const { messages } = this.conversation;
    while (messages.at(-1)?.role === 'assistant') messages.pop();
    if (messages.length > 0) await this.answer();
  }

  /** Starts to edit a message (`undefined`: ends editing). Sending it deletes the messages after it. */
  private edit(index: number | undefined): void {
    this.edited = index;
    byId('editing').hidden = index === undefined;
    if (index !== undefined) this.text.value = this.conversation.messages[index]?.content ?? '';
    this.updateButtons();
    this.focus();
  }

  private render(): void {
    const { messages } = this.conversation;
    this.log.replaceChildren(...messages.map((message, index) => this.article(message, index)));
    if (messages.length === 0) this.log.append(this.isReady ? h('p', { class: 'hint' }, 'Type a message. It stays on this machine.') : welcome());
    this.log.scrollTop = this.log.scrollHeight;
    this.updateButtons();
  }

  private article(message: StoredMessage, index: number): HTMLElement {
    const isUser = message.role === 'user';
    const isLast = index === this.conversation.messages.length - 1;
    const body = h('div', { class: 'body', dir: 'auto' });
    if (isUser) body.append(h('p', { class: 'plain' }, message.content));
    else body.append(markdown(message.content));
    const buttons = [this.button('Copy', () => void this.copy(message.content))];
    if (isUser) buttons.push(this.button('Edit', () => this.edit(index)));
    if (!isUser && isLast) buttons.push(this.button('Regenerate', () => void this.regenerate()));
    const isOpen = isLast && this.isAnswering;
    return h('article', { class: isUser ? 'user' : 'assistant', 'aria-label': isUser ? 'You' : 'Model' },
      h('h2', {}, isUser ? 'You' : 'Model'), body,
      ...(message.stats ? [h('p', { class: 'stats hint' }, message.stats)] : []),
      ...(isOpen ? [] : [h('div', { class: 'row actions' }, ...buttons)]));
  }

  private button(label: string, click: () => void): HTMLButtonElement {
    return h('button', { type: 'button', disabled: this.isAnswering, click }, label);
  }

  private async copy(text: string): Promise<void> {
    try {
      await navigator.clipboard.writeText(text);
      this.announce('Copied.');
    } catch (thrown) {
      failure('chat', thrown);
    }
  }

  private updateButtons(): void {
    this.send.disabled = !this.isReady || this.isAnswering || this.text.value.trim() === '';
    this.stop.disabled = !this.isAnswering;
  }

  /** Announces text to screen readers: once per answer, not once per token. */
  private announce(text: string): void {
    byId('announcement').textContent = text;
  }
}

/** Shown before a model is loaded. */
function welcome(): HTMLElement {
  return h('div', { class: 'welcome' },
    h('h2', {}, 'A language model in this page'),
    h('ol', {},
      h('li', {}, 'Choose a model. A small model loads faster; a large model answers better.'),
      h('li', {}, 'The model is downloaded once and stored in this browser. After that, it works offline.'),
      h('li', {}, 'The model runs on your own GPU. Your messages stay on this machine.')),
    h('button', { type: 'button', class: 'primary', click: () => document.querySelector<HTMLButtonElement>('nav [data-show=models]')!.click() },
      'Choose a model'));
}

function stats({ prompt_tokens, completion_tokens, extra }: CompletionUsage, reason: string | undefined): string {
  const cached = extra.cached_prompt_tokens > 0 ? ` (${extra.cached_prompt_tokens} cached)` : '';
  const end = reason === 'length' ? ' · cut off by the token limit or a full context' : reason === 'abort' ? ' · stopped' : '';
  return `${completion_tokens} tokens at ${rate(extra.decode_tokens_per_s)}/s · prompt of ${prompt_tokens} tokens${cached} at `
    + `${rate(extra.prefill_tokens_per_s)}/s · first token after ${extra.time_to_first_token_s.toFixed(2)} s${end}`;
}
