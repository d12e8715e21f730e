package virtinstall

import (
	goflag "flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// diffCase is a command line that the stock tool and ours run.
type diffCase struct {
	name string // of the case in the group
	// line is the command line, with single and double quotes as in a shell,
	// after [prefix], or all of it where it starts with "@".
	line string
	// why is the reason of an intended difference, for docs/compatibility-virt-install.md.
	// The test fails where there is none.
	why string
	// has is what ours must print then, on either stream; "" asks nothing.
	has string
	// words: only the words of the message differ, status and documents do not.
	words bool
}

// diffGroup is a part of the table.
type diffGroup struct {
	name  string
	cases []diffCase
}

// prefix is what all command lines start with.
const prefix = "--connect qemu:///system --print-xml --dry-run "

// table is every command line that is compared.
func table() []diffGroup { return slices.Concat(installTable, deviceTable, tutorialTable, errorTable) }

// workers is how many daemons share the work.
const workers = 2

var update = goflag.Bool("update", false, "write docs/compatibility-virt-install.md and testdata/pending")

// TestDifferential runs every command line of the table through the stock
// virt-install and ours, for a real libvirtd: the exit status, the documents
// element by element, and what is said must be the same, but for what a case
// gives a reason for.
func TestDifferential(t *testing.T) {
	dir := fixtures(t)
	pairs := startPairs(t, dir)
	t.Run("lines", func(t *testing.T) { compareLines(t, pairs) })
	t.Run("suboptions", func(t *testing.T) { compareSubOptions(t, pairs) })
}

func compareLines(t *testing.T, pairs []pair) {
	type job struct {
		name string
		c    diffCase
	}
	var jobs []job
	seen := map[string]bool{}
	for _, g := range table() {
		for _, c := range g.cases {
			name := g.name + "/" + c.name
			if seen[name] || seen[c.line] {
				t.Errorf("%s: %s: is in the table twice", name, c.line)
			}
			seen[name], seen[c.line] = true, true
			jobs = append(jobs, job{name, c})
		}
	}
	found := make([]string, len(jobs))
	each(t, pairs, len(jobs), func(p pair, i int) error {
		stock, ours, err := p.run(jobs[i].c.arguments())
		if err == nil {
			found[i] = jobs[i].c.judge(stock, ours)
		}
		return err
	})
	failed := map[string]string{}
	for i, j := range jobs {
		if found[i] != "" {
			failed[j.name] = fmt.Sprintf("virt-install %s\n%s", j.c.line, found[i])
		}
	}
	reportPending(t, "", seen, failed)
}

// startPairs starts pairs of tools, each with a daemon of its own.
func startPairs(t *testing.T, dir string) []pair {
	t.Helper()
	pairs := make([]pair, workers)
	for i := range pairs {
		d := libvirttest.StartWith(t, libvirttest.Options{PrivateNetwork: true})
		define(t, d, dir)
		pairs[i] = startPair(t, d, dir)
	}
	return pairs
}

// each has n pieces of work done by the pairs.
func each(t *testing.T, pairs []pair, n int, do func(p pair, i int) error) {
	t.Helper()
	var mu sync.Mutex // guards next
	next := 0
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1
	}
	var all sync.WaitGroup
	for _, p := range pairs {
		all.Go(func() {
			for i := take(); i < n; i = take() {
				if err := do(p, i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// arguments are the arguments of the case.
func (c diffCase) arguments() []string {
	line, alone := strings.CutPrefix(c.line, "@")
	if !alone {
		line = prefix + line
	}
	return lineWords(line)
}

// lineWords splits a line at blanks; what single or double quotes enclose is
// as it is.
func lineWords(line string) []string {
	var list []string
	word, started := "", false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case ' ':
			if started {
				list = append(list, word)
			}
			word, started = "", false
		case '\'', '"':
			end := i + 1 + strings.IndexByte(line[i+1:], c) // the table has no open quote
			word, started, i = word+line[i+1:end], true, end
		default:
			word, started = word+string(c), true
		}
	}
	if started {
		list = append(list, word)
	}
	return list
}

// judge says how ours differs from the stock tool where it should not, "" where
// all is well.
func (c diffCase) judge(stock, ours result) string {
	if ours.Status == panicked || stock.Status > 2 {
		return fmt.Sprintf("stock %d: %s\nours %d: %s", stock.Status, stock.Err, ours.Status, ours.Err)
	}
	diff := c.difference(stock, ours)
	switch {
	case c.why == "":
		return diff
	case diff == "":
		return "does not differ any more, though the table has a reason: " + c.why
	case c.has != "" && !strings.Contains(ours.Out+ours.Err, c.has):
		return fmt.Sprintf("ours should say %q:\n%s%s", c.has, ours.Out, ours.Err)
	case c.words && !strings.HasPrefix(diff, messageDiffers):
		return "more differs than the words:\n" + diff
	}
	return ""
}

const messageDiffers = "message:\n"

func (c diffCase) difference(stock, ours result) string {
	if stock.Status != ours.Status {
		return fmt.Sprintf("exit status: stock %d, ours %d\nstock: %s\nours:  %s", stock.Status, ours.Status, tail(stock.Err), tail(ours.Err))
	}
	if d := c.documents(stock.Out, ours.Out); d != "" {
		return d
	}
	if a, b := c.message(stock), c.message(ours); a != b {
		return messageDiffers + "stock: " + a + "\nours:  " + b
	}
	return ""
}

// tail is the end of a text that may be long.
func tail(s string) string { return s[max(0, len(s)-400):] }

// message is what a run said, of the usage that goes before it only the error.
func (c diffCase) message(r result) string {
	text := r.Err
	if i := strings.LastIndex(text, "virt-install: error: "); r.Status == 2 && i >= 0 {
		text = text[i:]
	}
	return c.normal(strings.TrimSpace(text))
}

// documents compares what was printed: domain documents, or words.
func (c diffCase) documents(stock, ours string) string {
	a, err := documentsOf(stock)
	if err != nil {
		return fmt.Sprintf("stock: %v\n%s", err, stock)
	}
	b, err := documentsOf(ours)
	if err != nil {
		return fmt.Sprintf("ours: %v\n%s", err, ours)
	}
	if len(a) != len(b) {
		return fmt.Sprintf("documents: stock %d, ours %d", len(a), len(b))
	}
	if len(a) == 0 && c.normal(stock) != c.normal(ours) {
		return fmt.Sprintf("stdout:\nstock: %s\nours:  %s", stock, ours)
	}
	var all []string
	for i := range a {
		c.normalise(a[i])
		c.normalise(b[i])
		if a[i].Equal(b[i]) {
			continue
		}
		diff := differing("", a[i], b[i])
		if len(diff) == 0 {
			diff = []string{"Equal says no, but no difference was found"}
		}
		all = append(all, fmt.Sprintf("document %d:\n%s", i+1, strings.Join(diff, "\n")))
	}
	return strings.Join(all, "\n")
}

// documentsOf reads the documents of an output; what has none is no error.
func documentsOf(text string) ([]*domxml.Element, error) {
	var list []*domxml.Element
	if !strings.Contains(text, "<domain") {
		return nil, nil
	}
	for {
		doc, rest, found := strings.Cut(text, "</domain>")
		if !found {
			if s := strings.TrimSpace(rest + doc); s != "" {
				return nil, fmt.Errorf("%q is beside the documents", s)
			}
			return list, nil
		}
		el, err := domxml.Parse([]byte(strings.TrimSpace(doc) + "</domain>"))
		if err != nil {
			return nil, err
		}
		list, text = append(list, el), rest
	}
}

// What is made anew by each run. Only what the command line does not say is
// left out of the comparison.
var random = []struct {
	is *regexp.Regexp
	as string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\b52:54:00(:[0-9a-f]{2}){3}\b`), "MAC"},
	{regexp.MustCompile(`[^ "]*/virt(inst|installer)-[A-Za-z0-9_]+`), "TEMPORARY"},
	{regexp.MustCompile(`[^ "]*/virtinst-[A-Za-z0-9_]+-`), "TEMPORARY-"},
	// A libvirt has one version of a machine type, another one another.
	{regexp.MustCompile(`\bpc-(i440fx|q35)-\d+\.\d+\b`), "pc-$1-VERSION"},
}

func (c diffCase) normal(text string) string {
	for _, r := range random {
		text = r.is.ReplaceAllStringFunc(text, func(s string) string {
			if strings.Contains(c.line, s) {
				return s
			}
			return r.is.ReplaceAllString(s, r.as)
		})
	}
	return text
}

// normalise does so with a document.
func (c diffCase) normalise(e *domxml.Element) {
	e.Text = c.normal(e.Text)
	if e.Name == "emulator" && !strings.Contains(c.line, "emulator") {
		e.Text = "EMULATOR"
	}
	for i := range e.Attrs {
		e.Attrs[i].Value = c.normal(e.Attrs[i].Value)
	}
	for _, child := range e.Children {
		c.normalise(child)
	}
}

// differing lists where two elements differ, as paths.
func differing(path string, a, b *domxml.Element) []string {
	path += "/" + a.Name
	var out []string
	if a.Text != b.Text {
		out = append(out, fmt.Sprintf("%s: stock %q, ours %q", path, a.Text, b.Text))
	}
	for _, at := range a.Attrs {
		if v, ok := b.LookAttr(at.Name); !ok {
			out = append(out, fmt.Sprintf("%s/@%s: stock %q, ours has none", path, at.Name, at.Value))
		} else if v != at.Value {
			out = append(out, fmt.Sprintf("%s/@%s: stock %q, ours %q", path, at.Name, at.Value, v))
		}
	}
	for _, at := range b.Attrs {
		if _, ok := a.LookAttr(at.Name); !ok {
			out = append(out, fmt.Sprintf("%s/@%s: stock has none, ours %q", path, at.Name, at.Value))
		}
	}
	seen := map[string]bool{}
	for _, child := range slices.Concat(a.Children, b.Children) {
		if seen[child.Name] {
			continue
		}
		seen[child.Name] = true
		x, y := a.All(child.Name), b.All(child.Name)
		for i := range max(len(x), len(y)) {
			at := fmt.Sprintf("%s[%d]", path, i+1)
			switch {
			case i >= len(x):
				out = append(out, at+": only ours has "+oneLine(y[i]))
			case i >= len(y):
				out = append(out, at+": only stock has "+oneLine(x[i]))
			default:
				out = append(out, differing(path, x[i], y[i])...)
			}
		}
	}
	return out
}

func oneLine(e *domxml.Element) string {
	return strings.Join(strings.Fields(e.String()), " ")
}

// pendingFile lists the cases that fail still, a line each. It is there while
// the parts of the tool are being made, and is to be empty.
const pendingFile = "testdata/pending"

// reportPending fails the test for each case that failed and is not expected
// to, and for each that is expected to fail and did not. The names of this
// test's cases start with own.
func reportPending(t *testing.T, own string, all map[string]bool, failed map[string]string) {
	t.Helper()
	b, err := os.ReadFile(pendingFile)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	pending := map[string]bool{}
	var left []string
	for _, name := range strings.Fields(string(b)) {
		if !all[strings.TrimPrefix(name, own)] || !strings.HasPrefix(name, own) {
			left = append(left, name) // of another test
			continue
		}
		pending[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		left = append(left, own+name)
		if !pending[own+name] {
			t.Errorf("%s%s: %s", own, name, failed[name])
		} else {
			t.Logf("pending: %s%s: %s", own, name, failed[name])
		}
		delete(pending, own+name)
	}
	for name := range pending {
		t.Errorf("%s passes: remove it from %s", name, pendingFile)
	}
	if *update {
		slices.Sort(left)
		text := strings.Join(slices.Compact(left), "\n")
		if text != "" {
			text += "\n"
		}
		if err := os.WriteFile(pendingFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
