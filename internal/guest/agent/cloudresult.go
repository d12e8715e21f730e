package agent

import (
	"encoding/json"
	"fmt"
	"strings"
)

// resultErrors are the errors in cloud-init's result.json, given as its lines.
func resultErrors(lines []string) []string {
	if len(lines) == 0 {
		return nil
	}
	var result struct {
		V1 struct {
			Errors []any `json:"errors"`
		} `json:"v1"`
	}
	if err := json.Unmarshal([]byte(strings.Join(lines, "\n")), &result); err != nil {
		return []string{"cloud-init's result cannot be read: " + printable(clip(err.Error()))}
	}
	var out []string
	for _, e := range result.V1.Errors {
		if len(out) == 5 {
			break
		}
		out = append(out, "cloud-init says "+printable(clip(fmt.Sprint(e))))
	}
	return out
}
