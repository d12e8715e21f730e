package seed

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"
)

// TemplateData is what user-data can say of the machine that it is for.
type TemplateData struct {
	Name     string // of the machine
	Hostname string
	Index    int // from 1, of the machines that are made together
	Count    int // how many those are
	Template string
}

// Template is user-data that is filled in for each machine: a text/template over
// [TemplateData]. Loops, and the built-in functions that escape for other languages, are
// not part of it, so that what it makes and the time that it takes are bounded by its
// length. It is safe for concurrent use.
type Template struct{ t *template.Template }

// maxFormatted bounds what one printf makes, in bytes, and maxFormat what it is told.
const (
	maxFormatted = 4096
	maxFormat    = 256
)

// allowedFuncs are all functions that a template may call.
var allowedFuncs = map[string]bool{
	"and": true, "or": true, "not": true, "eq": true, "ne": true, "lt": true, "le": true, "gt": true, "ge": true,
	"len": true, "printf": true, "lower": true, "upper": true, "add": true,
}

// ParseTemplate reads a template of at most 1 MiB. The error names the line.
func ParseTemplate(text []byte) (*Template, error) {
	if len(text) > maxUserData {
		return nil, fmt.Errorf("user-data template of %d bytes, more than %d", len(text), maxUserData)
	}
	t := template.New("user-data").Option("missingkey=error").Funcs(template.FuncMap{
		"printf": boundedPrintf, "lower": strings.ToLower, "upper": strings.ToUpper, "add": func(a, b int) int { return a + b },
	})
	t, err := t.Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("user-data template: %w", err)
	}
	if len(t.Templates()) > 1 {
		return nil, errors.New("user-data template: it defines further templates, which it may not")
	}
	if t.Tree != nil {
		if err := checkNode(t.Tree, t.Root); err != nil {
			return nil, fmt.Errorf("user-data template: %w", err)
		}
	}
	return &Template{t}, nil
}

// Render fills the template in for one machine. What comes out is at most 1 MiB.
func (t *Template) Render(d TemplateData) ([]byte, error) {
	w := &boundedBuffer{}
	if err := t.t.Execute(w, d); err != nil {
		return nil, fmt.Errorf("user-data template, machine %s: %w", d.Name, err)
	}
	return w.Bytes(), nil
}

// checkNode refuses what is not bounded.
func checkNode(tree *parse.Tree, n parse.Node) error {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, c := range n.Nodes {
			if err := checkNode(tree, c); err != nil {
				return err
			}
		}
	case *parse.ActionNode:
		return checkPipe(tree, n.Pipe)
	case *parse.IfNode:
		return checkBranch(tree, &n.BranchNode)
	case *parse.WithNode:
		return checkBranch(tree, &n.BranchNode)
	case *parse.TextNode, *parse.CommentNode:
	default:
		where, what := tree.ErrorContext(n)
		return fmt.Errorf("%s: %s is not allowed here: use text, values, if and with", where, what)
	}
	return nil
}

func checkBranch(tree *parse.Tree, b *parse.BranchNode) error {
	return errors.Join(checkPipe(tree, b.Pipe), checkNode(tree, b.List), checkNode(tree, b.ElseList))
}

func checkPipe(tree *parse.Tree, p *parse.PipeNode) error {
	if p == nil {
		return nil
	}
	for _, c := range p.Cmds {
		for _, arg := range c.Args {
			if err := checkArg(tree, arg); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkArg(tree *parse.Tree, arg parse.Node) error {
	switch a := arg.(type) {
	case *parse.PipeNode:
		return checkPipe(tree, a)
	case *parse.ChainNode:
		return checkArg(tree, a.Node)
	case *parse.IdentifierNode:
		if !allowedFuncs[a.Ident] {
			where, _ := tree.ErrorContext(a)
			return fmt.Errorf("%s: the function %s is not allowed here", where, a.Ident)
		}
	}
	return nil
}

// boundedPrintf is printf of a short format whose result is short.
func boundedPrintf(format string, args ...any) (string, error) {
	if len(format) > maxFormat {
		return "", fmt.Errorf("printf: a format of %d bytes, more than %d", len(format), maxFormat)
	}
	// fmt bounds a width and a precision to a million.
	s := fmt.Sprintf(format, args...)
	if len(s) > maxFormatted {
		return "", fmt.Errorf("printf: makes %d bytes, more than %d", len(s), maxFormatted)
	}
	return s, nil
}

// boundedBuffer takes what user-data may have.
type boundedBuffer struct{ bytes.Buffer }

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxUserData {
		return 0, fmt.Errorf("it makes more than %d bytes", maxUserData)
	}
	return b.Buffer.Write(p)
}
