// Renders a Helm chart with what Helm itself is made of, Go's templates and sprig, where no helm can be had.
// Needs Debian's golang-go, golang-github-masterminds-sprig-dev and golang-github-ghodss-yaml-dev. Arguments: CHART VALUES…
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"github.com/ghodss/yaml"
)

func load(path string) map[string]interface{} {
	data, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	v := map[string]interface{}{}
	if err := yaml.Unmarshal(data, &v); err != nil {
		panic(err)
	}
	return v
}

func merge(a, b map[string]interface{}) {
	for k, v := range b {
		if m, ok := v.(map[string]interface{}); ok {
			if n, ok := a[k].(map[string]interface{}); ok {
				merge(n, m)
				continue
			}
		}
		a[k] = v
	}
}

func main() {
	chart := os.Args[1]
	values := load(filepath.Join(chart, "values.yaml"))
	for _, f := range os.Args[2:] {
		merge(values, load(f))
	}
	meta := load(filepath.Join(chart, "Chart.yaml"))
	c := map[string]interface{}{"Name": meta["name"], "Version": meta["version"], "AppVersion": meta["appVersion"]}
	t := template.New("chart").Option("missingkey=zero")
	f := sprig.TxtFuncMap()
	delete(f, "env")
	delete(f, "expandenv")
	f["include"] = func(name string, data interface{}) (string, error) {
		var b strings.Builder
		err := t.ExecuteTemplate(&b, name, data)
		return b.String(), err
	}
	f["toYaml"] = func(v interface{}) string {
		b, err := yaml.Marshal(v)
		if err != nil {
			panic(err)
		}
		return strings.TrimSuffix(string(b), "\n")
	}
	f["toJson"] = func(v interface{}) string { b, _ := json.Marshal(v); return string(b) }
	f["required"] = func(m string, v interface{}) (interface{}, error) {
		if v == nil || v == "" {
			return nil, fmt.Errorf(m)
		}
		return v, nil
	}
	t.Funcs(f)
	files, _ := filepath.Glob(filepath.Join(chart, "templates", "*"))
	sort.Strings(files)
	for _, p := range files {
		data, _ := os.ReadFile(p)
		template.Must(t.New(p).Parse(string(data)))
	}
	data := map[string]interface{}{"Values": values, "Chart": c,
		"Release": map[string]interface{}{"Name": "north", "Namespace": "cairn", "Service": "Helm"}}
	for _, p := range files {
		if strings.HasPrefix(filepath.Base(p), "_") || strings.HasSuffix(p, ".txt") {
			continue
		}
		var b strings.Builder
		if err := t.ExecuteTemplate(&b, p, data); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if strings.TrimSpace(b.String()) == "" {
			continue
		}
		fmt.Printf("---\n# Source: cairn/templates/%s\n%s\n", filepath.Base(p), b.String())
	}
}
