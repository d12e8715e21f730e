package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/nearest"
)

// testRoot returns the command tree; its output goes nowhere.
func testRoot(t *testing.T) *cobra.Command {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	return newRoot(newApp(null, null, null, Heavy{}))
}

// walk calls f for every verb.
func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		walk(c, f)
	}
}

// TestEveryVerbIsExplained: a short line, a description, an example that
// begins with the verb and whose options exist.
func TestEveryVerbIsExplained(t *testing.T) {
	root := testRoot(t)
	n := 0
	walk(root, func(c *cobra.Command) {
		n++
		path := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short text %q: one phrase without a full stop", path, c.Short)
		}
		if !strings.HasSuffix(strings.TrimRight(c.Long, "`"), ".") {
			t.Errorf("%s: description %q does not end in a full stop", path, c.Long)
		}
		for line := range strings.SplitSeq(c.Long, "\n") {
			if len(line) > 84 {
				t.Errorf("%s: description has a line of %d columns: %q", path, len(line), line)
			}
		}
		if !strings.Contains(c.Example+"\n", "  "+path+" ") && !strings.Contains(c.Example+"\n", "  "+path+"\n") {
			t.Errorf("%s: no example of it: %q", path, c.Example)
		}
		checkExamples(t, root, c.Example)
	})
	if n < 25 {
		t.Errorf("%d verbs only", n)
	}
}

// checkExamples parses each example as far as it can be without running it.
func checkExamples(t *testing.T, root *cobra.Command, text string) {
	t.Helper()
	for line := range strings.SplitSeq(text, "\n") {
		line, _, _ = strings.Cut(line, " > ")
		words := strings.Fields(strings.ReplaceAll(line, "'", ""))
		if len(words) < 2 || words[0] != "lamina" {
			t.Errorf("example %q does not begin with lamina", line)
			continue
		}
		cmd, rest, err := root.Find(words[1:])
		if err != nil || cmd == root {
			t.Errorf("example %q: no such verb", line)
			continue
		}
		if cmd.DisableFlagParsing {
			continue
		}
		for i, w := range rest {
			if w == "--" {
				break
			}
			name, _, _ := strings.Cut(strings.TrimLeft(w, "-"), "=")
			switch {
			case strings.HasPrefix(w, "--"):
				if cmd.Flags().Lookup(name) == nil {
					t.Errorf("example %q: %s has no option --%s", line, cmd.Name(), name)
				}
			case strings.HasPrefix(w, "-") && len(w) > 1 && i > 0:
				if cmd.Flags().ShorthandLookup(w[1:2]) == nil {
					t.Errorf("example %q: %s has no option %s", line, cmd.Name(), w)
				}
			}
		}
	}
}

// TestDocuments: every command line of lamina in the README and under docs
// names a verb and options that exist.
func TestDocuments(t *testing.T) {
	root := testRoot(t)
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, f := range append(files, "../../README.md", "../../CONTRIBUTING.md") {
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			// A command line stands in a block of code, alone or behind a prompt.
			code := strings.TrimPrefix(strings.TrimSpace(line), "$ ")
			if !strings.HasPrefix(code, "lamina ") || !strings.HasPrefix(line, "    ") && !strings.HasPrefix(line, "$ ") {
				continue
			}
			code, _, _ = strings.Cut(code, "  ") // what follows is a remark
			code, _, _ = strings.Cut(code, " #")
			for one := range strings.SplitSeq(code, " ; ") {
				found++
				checkExamples(t, root, one)
			}
		}
	}
	if found == 0 {
		t.Error("no command line of lamina in any document")
	}
}

// TestEveryDataVerbHasJSON: what prints data prints it as JSON too.
func TestEveryDataVerbHasJSON(t *testing.T) {
	root := testRoot(t)
	for _, path := range []string{"run", "clone", "pull", "ls", "info", "start", "stop", "kill", "version", "attach", "detach", "resize", "media", "events", "check", "explain",
		"snapshot list", "snapshot create",
		"commit", "flatten", "rebase", "prune", "space",
		"fleet plan", "fleet apply", "fleet ls", "fleet info", "fleet wait", "template import", "template ls", "template info", "template tree", "template tag", "template create"} {
		cmd, _, err := root.Find(strings.Fields(path))
		if err != nil {
			t.Fatal(err)
		}
		if cmd.Flags().Lookup("json") == nil {
			t.Errorf("%s has no --json", path)
		}
	}
}

// TestMan writes the manual and has it read by the formatter if there is one.
func TestMan(t *testing.T) {
	root := testRoot(t)
	dir := t.TempDir()
	if err := writeMan(root, dir); err != nil {
		t.Fatal(err)
	}
	walk(root, func(c *cobra.Command) {
		if !c.IsAvailableCommand() {
			return
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		page := string(b)
		for _, want := range []string{".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH EXAMPLES", ".SH EXIT STATUS"} {
			if !strings.Contains(page, want) {
				t.Errorf("%s has no %s", name, want)
			}
		}
		for i, line := range strings.Split(page, "\n") {
			// A line of text that begins with a dot would be a request.
			if strings.HasPrefix(line, ".") && !knownRequest(line) {
				t.Errorf("%s, line %d: %q", name, i+1, line)
			}
		}
	})
	groff, err := exec.LookPath("groff")
	if err != nil {
		return // the pages' form was checked above; groff is not part of the project
	}
	for _, page := range []string{"lamina.1", "lamina-run.1"} {
		out, err := exec.Command(groff, "-man", "-Tascii", "-ww", "-z", filepath.Join(dir, page)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("groff %s: %v\n%s", page, err, out)
		}
	}
}

func knownRequest(line string) bool {
	for _, r := range []string{".TH ", ".SH ", ".B ", ".BR ", ".TP", ".PP", ".nf", ".fi"} {
		if strings.HasPrefix(line, r) {
			return true
		}
	}
	return false
}

func TestNearest(t *testing.T) {
	verbs := []string{"run", "clone", "console", "ls", "logs", "start", "stop", "screen"}
	for word, want := range map[string]string{"rnu": "run", "cloen": "clone", "consol": "console", "strat": "start",
		"l": "ls", "frobnicate": "", "": "", "log": "logs"} {
		if got := nearest.Word(word, verbs); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
