package lint

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// goPackage is what `go list -json` says of a package.
type goPackage struct {
	ImportPath string
	Imports    []string // of the package itself, not of its tests
	Deps       []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Dir = "../.."
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImportRules(t *testing.T) {
	pkgs := listPackages(t)
	bound := make([]bool, len(rules))
	for _, p := range pkgs {
		room := strings.TrimPrefix(p.ImportPath, module)
		for i, r := range rules {
			if !r.binds(room) {
				continue
			}
			bound[i] = true
			imports := p.Imports
			if r.deep {
				imports = p.Deps
			}
			for _, imp := range imports {
				if r.forbids(room, imp) {
					t.Errorf("%s imports %s: %s", room, strings.TrimPrefix(imp, module), r.reason)
				}
			}
		}
	}
	for i, ok := range bound {
		if !ok && !strings.HasPrefix(rules[i].from, "nbd") {
			t.Errorf("the rule for %s binds no package: a room was renamed and its rule was not", rules[i].from)
		}
	}
}

// The rules themselves must be able to find something.
func TestRulesForbid(t *testing.T) {
	for _, c := range []struct{ from, imp string }{
		{"block", module + "format"},
		{"format/qcow2", module + "format/raw"},
		{"format/qcow2", module + "protocol/file"},
		{"protocol/file", module + "format"},
		{"image", module + "internal/store"},
		{"internal/vm/qemu", module + "internal/guest/boot"},
		{"cmd/lamina", "modernc.org/sqlite"},
		{"cmd/laminad", "C"},
		{"image", module + "internal/qemutest"},
	} {
		found := false
		for _, r := range rules {
			found = found || r.binds(c.from) && r.forbids(c.from, c.imp)
		}
		if !found {
			t.Errorf("no rule keeps %s from importing %s", c.from, c.imp)
		}
	}
}
