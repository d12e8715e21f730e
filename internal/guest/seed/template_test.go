package seed

import (
	"strings"
	"testing"
)

func TestTemplate(t *testing.T) {
	data := TemplateData{Name: "Web-2", Hostname: "web-2", Index: 2, Count: 10, Template: "debian:12"}
	for text, want := range map[string]string{
		"#cloud-config\nhostname: {{.Hostname}}\n":                           "#cloud-config\nhostname: web-2\n",
		`{{.Name}} {{.Index}}/{{.Count}} of {{.Template}}`:                   "Web-2 2/10 of debian:12",
		`{{printf "10.0.0.%d" (add .Index 9)}}{{/* a remark */}}`:            "10.0.0.11",
		`{{if eq .Index 1}}first{{else if gt .Index 5}}late{{else}}x{{end}}`: "x",
		`{{with $n := lower .Name}}{{$n}}{{end}}{{$m := .Index}}{{$m}}`:      "web-22",
		"": "",
	} {
		tt, err := ParseTemplate([]byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got, err := tt.Render(data); err != nil || string(got) != want {
			t.Errorf("%q makes %q, %v; want %q", text, got, err, want)
		}
	}
}

// TestTemplateBounds: what could take all memory or time is refused, and a typing
// mistake is one, each with the line.
func TestTemplateBounds(t *testing.T) {
	double := `{{$x := "xxxxxxxxxxxxxxxx"}}` + strings.Repeat(`{{$x = printf "%[1]s%[1]s" $x}}`, 60)
	for text, want := range map[string]string{
		"{{.Nmae}}":                      "Nmae",
		"\n\n{{.Name":                    ":3",
		"{{range 1000000000}}{{end}}":    "not allowed here",
		`{{define "a"}}{{end}}`:          "further templates",
		`{{template "user-data" .}}`:     "not allowed here",
		`{{js .Name}}`:                   "function js",
		`{{print (html .Name)}}`:         "not allowed here",
		`{{if (urlquery .Name)}}{{end}}`: "function urlquery",
		`{{printf "%999999d" 1}}`:        "more than 4096",
		double:                           "more than 4096",
		`{{printf "` + strings.Repeat("%d", 200) + `"}}`: "a format of 400",
		`{{index .Name 99}}`:                             "function index",
		`{{(js .Name).Foo}}`:                             "function js",
		"{{" + strings.Repeat("(", 900_000):              "",
		strings.Repeat("{{if .Index}}", 80_000):          "",
		strings.Repeat("x", 1<<20) + "1":                 "more than",
		strings.Repeat(`{{printf "%4000d" 1}}`, 300):     "more than 1048576",
	} {
		tt, err := ParseTemplate([]byte(text))
		if err == nil {
			_, err = tt.Render(TemplateData{Name: "m"})
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v; want %q", text, err, want)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	f.Add([]byte("{{.Name}}"))
	f.Add([]byte(`{{if .Index}}{{printf "%d" .Count}}{{end}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		tt, err := ParseTemplate(text)
		if err != nil {
			return
		}
		if out, err := tt.Render(TemplateData{Name: "m", Index: 1, Count: 1}); err == nil && len(out) > 1<<20 {
			t.Errorf("%d bytes", len(out))
		}
	})
}
