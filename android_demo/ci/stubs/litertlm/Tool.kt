package com.google.ai.edge.litertlm

@Target(AnnotationTarget.FUNCTION)
@Retention(AnnotationRetention.RUNTIME)
annotation class Tool(val description: String)

@Target(AnnotationTarget.VALUE_PARAMETER)
@Retention(AnnotationRetention.RUNTIME)
annotation class ToolParam(val description: String)

abstract class ToolProvider

interface ToolSet

interface OpenApiTool {
    fun getToolDescriptionJsonString(): String

    fun execute(paramsJsonString: String): String
}

fun tool(toolSet: ToolSet): ToolProvider = throw SignatureOnly("$toolSet")

fun tool(openApiTool: OpenApiTool): ToolProvider = throw SignatureOnly("$openApiTool")
