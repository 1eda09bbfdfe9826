"""The policy file: `schema` says what may stand in it, `load` turns YAML into it or says what is
wrong.
"""
