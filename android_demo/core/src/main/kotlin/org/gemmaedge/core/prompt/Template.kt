package org.gemmaedge.core.prompt

/** A prompt to use again. Where [text] has [PLACE], what the user has written goes in. */
data class Template(val name: String, val text: String) {
    init {
        require(name.isNotBlank()) { "a template needs a name" }
        require(text.isNotBlank()) { "a template needs a text" }
    }

    /** [written] in its place, or behind a template without one. */
    fun filled(written: String): String = when {
        PLACE in text -> text.replace(PLACE, written)
        written.isBlank() -> text
        else -> "${text.trimEnd()}\n\n$written"
    }

    companion object {
        const val PLACE = "{text}"
    }
}
