package boot

import (
	"slices"
	"strings"
	"time"
)

// analyser decides from console output what a guest has reached and whether it
// goes on. It knows no clock: every call is told the time since Watch began,
// and everything that takes time is decided in tick. Not safe for concurrent use.
type analyser struct {
	hints   Hints
	timeout time.Duration
	stall   time.Duration
	// patient: the caller left Stall to us, so a wait that is known to end by
	// itself may take longer than that.
	patient bool

	serial, screen source
	stage          Stage
	via            string
	facts          facts
	boots          int  // restarts seen
	kernel         bool // of this boot: the kernel's banner was seen
	firmware       bool

	now      time.Duration // the latest time told
	news     time.Duration // when something new came last
	newsFrom *source
	waiting  *waiting
	dead     *verdict // fatal
	asking   *verdict // a prompt, if nothing else comes
	told     map[string]bool

	events []Event // taken by the caller after each call
	result *Result // set when the watch is over
}

// source is one console.
type source struct {
	via  string
	term terminal
	tail tail
	seen time.Duration // when it wrote last
	any  bool          // it wrote at all
	shot map[string]bool
}

// waiting is a wait that a rule saw.
type waiting struct {
	rule  *rule
	since time.Duration
	src   *source
}

// verdict is a Problem that is told at a time, if nothing changes that.
type verdict struct {
	rule *rule
	due  time.Duration
	src  *source
	last []string // fatal: the lines up to the one that says it, then those behind
	more int      // how many are behind
}

// behind keeps a line that follows a fatal one, unless it is of the dump that
// the kernel writes then: that would push out the line that matters.
func (v *verdict) behind(src *source, line string) {
	if src != v.src || v.more == maxLast/2 || isKernelLine(line) && !strings.Contains(line, "Kernel panic") {
		return
	}
	v.more++
	v.last = append(v.last, clip(line))
}

func newAnalyser(o Options) *analyser {
	a := &analyser{hints: o.Hints, timeout: o.Timeout, stall: o.Stall, patient: o.Stall == 0, told: map[string]bool{}}
	slow := time.Duration(1)
	if o.Hints.TCG {
		slow = 4
	}
	if a.timeout == 0 {
		a.timeout = slow * 10 * time.Minute
	}
	if a.stall == 0 {
		a.stall = slow * 90 * time.Second
	}
	a.serial.via, a.screen.via = "serial", "screen"
	a.serial.term.emit = func(s string) { a.line(&a.serial, s) }
	a.via, a.newsFrom = "serial", &a.serial
	return a
}

// write takes what the serial port sent.
func (a *analyser) write(now time.Duration, p []byte) {
	if a.result != nil {
		return
	}
	a.now = now
	a.serial.seen, a.serial.any = now, a.serial.any || len(p) > 0
	a.serial.term.write(p)
	a.prompt(&a.serial, a.serial.term.partial())
}

// show takes the lines of the text screen; nil where it has none.
func (a *analyser) show(now time.Duration, lines []string) {
	if a.result != nil {
		return
	}
	a.now = now
	a.facts.graphical = lines == nil
	shot := make(map[string]bool, len(lines))
	last := ""
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if l == "" {
			continue
		}
		if len(l) > maxLine {
			l = l[:maxLine]
		}
		l = strings.ToValidUTF8(l, "?")
		last, shot[l] = l, true
		if !a.screen.shot[l] && a.result == nil {
			a.screen.seen, a.screen.any = now, true
			a.line(&a.screen, l)
		}
	}
	a.screen.shot = shot
	// The serial port is the better witness where it speaks: a login prompt
	// on the screen counts when it has fallen silent.
	if a.serial.any && a.stage >= StageKernel && a.via == "serial" && now-a.serial.seen < screenPatience {
		return
	}
	a.prompt(&a.screen, last)
}

// screenPatience is how long a serial port that has spoken must be silent
// before a prompt on the screen counts.
const screenPatience = 5 * time.Second

// line takes one line of a console.
func (a *analyser) line(src *source, line string) {
	if a.result != nil {
		return
	}
	src.tail.add(line)
	a.facts.learn(line)
	if a.dead != nil {
		a.dead.behind(src, line)
	}
	if isLoginSwamped(line) {
		a.login(src, line)
		return
	}
	stage, r := match(line)
	if r == nil {
		// A prompt that somebody, or a time limit, has answered.
		if r = matchPrompt(line); r != nil {
			stage = max(stage, r.stage)
		}
	}
	a.restarted(src, line)
	a.seenBy(src, stage, line)
	if r == nil || r.mode != wait {
		a.progress(src, r, line)
	}
	if r == nil {
		return
	}
	if r.done && a.waiting != nil && a.waiting.rule.kind == r.kind {
		a.waiting = nil
	}
	switch r.mode {
	case note:
		a.tell(r.note, line)
	case wait:
		a.wait(src, r, line)
	case prompt:
		a.asking = a.sooner(a.asking, r, src)
	case fatal:
		if a.dead == nil {
			lines := src.tail.lines
			a.dead = &verdict{rule: r, due: a.now + r.after, src: src, last: slices.Clone(lines[max(0, len(lines)-maxLast/2):])}
		}
	}
}

// sooner keeps a prompt that is due already: "boot:" after "Could not find
// kernel image" waits no longer than that did.
func (a *analyser) sooner(old *verdict, r *rule, src *source) *verdict {
	after := r.after
	if a.hints.TCG {
		after *= 2
	}
	v := &verdict{rule: r, due: a.now + after, src: src}
	if old != nil && old.due <= v.due {
		old.due = min(v.due, a.now+after)
		return old
	}
	return v
}

// progress notes that something other than waiting happened.
func (a *analyser) progress(src *source, r *rule, line string) {
	a.news, a.newsFrom = a.now, src
	switch v := a.asking; {
	case v == nil || r != nil && r.mode == prompt:
	case v.rule.menu && a.stage == v.rule.stage && !leavesMenu(line):
		a.asking = a.sooner(nil, v.rule, src) // still being drawn
	default:
		a.asking = nil
	}
	if w := a.waiting; w != nil && !w.rule.sticky && w.src == src {
		a.waiting = nil
	}
}

// seenBy raises the stage. What both consoles show counts as the serial
// port's, whichever was read first: that is the one a person can type to.
func (a *analyser) seenBy(src *source, s Stage, line string) {
	switch {
	case s > a.stage:
		a.reach(src, s, line)
	case s == a.stage && s != StageNone && src == &a.serial:
		a.via = src.via
	}
}

func (a *analyser) reach(src *source, s Stage, line string) {
	a.stage, a.via = s, src.via
	if a.waiting != nil && s > a.waiting.rule.stage {
		a.waiting = nil
	}
	a.events = append(a.events, Event{Stage: s, Since: a.now, Line: line})
}

// tell tells something once a boot.
func (a *analyser) tell(text, line string) {
	if text == "" || a.told[text] || len(a.told) > 100 {
		return
	}
	a.told[text] = true
	a.events = append(a.events, Event{Stage: a.stage, Since: a.now, Line: line, Note: text})
}

func (a *analyser) wait(src *source, r *rule, line string) {
	if a.waiting == nil || a.waiting.rule.kind != r.kind {
		a.waiting = &waiting{r, a.now, src}
	}
	text := r.note
	switch {
	case r.kind == KindService && a.facts.job != "":
		text = "the guest waits for " + a.facts.job
	case r.kind == KindMetadata && !a.hints.HasSeed:
		text += "; a machine with a seed does not ask: start it without --no-seed"
	}
	a.tell(text, line)
}

// prompt looks at an unfinished line, or the last one of the screen.
func (a *analyser) prompt(src *source, line string) {
	if a.result != nil || line == "" {
		return
	}
	if isLogin(line) {
		a.login(src, line)
		return
	}
	r := matchPrompt(line)
	if r == nil {
		return
	}
	a.seenBy(src, r.stage, line)
	if a.asking == nil {
		a.asking = a.sooner(nil, r, src)
	}
}

func (a *analyser) login(src *source, line string) {
	src.tail.add(line)
	a.reach(src, StageLogin, line)
	a.result = &Result{Stage: StageLogin, Took: a.now, Login: true, Via: src.via}
}

// maxBoots is how often a guest may start before that counts as a loop: some
// images restart once on purpose (SELinux labels, a grown disk).
const maxBoots = 4

// restarted notices that the guest begins again.
func (a *analyser) restarted(src *source, line string) {
	if src == &a.screen && a.serial.any {
		return // the serial port tells it better
	}
	var banner *bool
	stage := StageFirmware
	switch {
	case strings.Contains(line, "SeaBIOS (version"):
		banner = &a.firmware
	case strings.Contains(line, "Linux version ") && !strings.Contains(line, "Command line"):
		banner, stage = &a.kernel, StageKernel
	default:
		return
	}
	again := *banner || stage == StageFirmware && a.stage > StageFirmware
	if again {
		a.boots++
		a.kernel, a.firmware = false, false
		// What was fatal stays so: a panic that restarts the guest is a panic.
		a.stage, a.asking, a.waiting = stage-1, nil, nil
		a.told = map[string]bool{}
		a.tell("the guest started again", line)
	}
	*banner = true
}

// ended says that the machine is gone.
func (a *analyser) ended(now time.Duration) {
	if a.result != nil {
		return
	}
	a.now = now
	if p := a.serial.term.partial(); p != "" {
		a.serial.term.flush()
		if isLogin(p) {
			a.login(&a.serial, p)
		}
	}
	switch {
	case a.result != nil:
	case a.dead != nil:
		a.conclude(a.dead.rule, a.dead.rule.kind, a.dead.src)
	case a.asking != nil:
		a.conclude(a.asking.rule, a.asking.rule.kind, a.asking.src)
	default:
		a.conclude(nil, KindEnded, a.newsFrom)
	}
}

// tick decides what time decides.
func (a *analyser) tick(now time.Duration) {
	if a.result != nil {
		return
	}
	a.now = now
	if p := a.serial.term.partial(); isShell(p) && a.stage >= StageInit && now-a.serial.seen >= time.Second {
		a.login(&a.serial, p)
		return
	}
	if a.boots >= maxBoots-1 {
		a.conclude(nil, KindRebootLoop, &a.serial)
		return
	}
	if v := a.dead; v != nil && now >= v.due {
		a.conclude(v.rule, v.rule.kind, v.src)
		return
	}
	if v := a.asking; v != nil && now >= v.due {
		a.conclude(v.rule, v.rule.kind, v.src)
		return
	}
	w := a.waiting
	if w != nil && a.patient && now-w.since >= w.rule.after {
		a.conclude(w.rule, w.rule.kind, w.src)
		return
	}
	kind, src := "", a.newsFrom
	switch {
	case now >= a.timeout:
		kind = KindTimeout
	case now-a.news >= a.stall && (w == nil || !a.patient):
		kind = KindStalled
	default:
		return
	}
	if w != nil {
		a.conclude(w.rule, w.rule.kind, w.src)
		return
	}
	if v := a.asking; v != nil {
		a.conclude(v.rule, v.rule.kind, v.src)
		return
	}
	a.conclude(nil, kind, src)
}

// conclude ends the watch with a Problem.
func (a *analyser) conclude(r *rule, kind string, src *source) {
	stage := a.stage
	if r != nil && r.at != StageNone {
		stage = r.at
	}
	kind = a.refine(kind)
	last := slices.Clone(src.tail.lines)
	if a.dead != nil && src == a.dead.src {
		last = a.dead.last
	}
	if p := src.term.partial(); p != "" {
		last = append(last, clip(p))
	}
	cause, remedy := a.advise(kind, stage)
	a.result = &Result{
		Stage: a.stage, Took: a.now, Via: a.via,
		Problem: &Problem{Kind: kind, Stage: stage, Last: last[max(0, len(last)-maxLast):], Cause: cause, Remedy: remedy},
	}
}

// refine finds the reason behind what was seen first.
func (a *analyser) refine(kind string) string {
	f := &a.facts
	switch kind {
	case KindNoRoot:
		if f.initramfs != "" {
			if strings.Contains(f.initramfs, "write error") {
				return KindMemory
			}
			return KindInitramfs
		}
	case KindLoader:
		if f.loader != "" && !f.rescue {
			return KindLoaderError
		}
	case KindEmergency:
		if f.missing != "" && a.stage < StageCloudInit {
			return KindNoRoot
		}
	case KindPanic:
		switch {
		case strings.Contains(f.panicked, "VFS:"):
			return KindNoRoot
		case f.oom || strings.Contains(f.panicked, "memory"):
			return KindMemory
		case f.initramfs != "":
			return KindInitramfs
		}
	}
	return kind
}
